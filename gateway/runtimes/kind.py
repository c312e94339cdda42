"""What kind of engine containers run on, and what it cannot do that an entry may count on.

Pure: reads what an engine says of itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, Self

from catalog import Entry


class EngineKind(NamedTuple):
    """Docker or Podman, run by root or by a user, with or without control groups."""

    is_podman: bool = False
    is_rootless: bool = False
    has_limits: bool = True
    """Whether the kernel holds containers to their memory, CPU and processes. A rootless engine needs control groups of
    version 2 for that; without them it takes the limits and shows them, and nothing comes of it."""

    @classmethod
    def of(cls, info: Mapping[str, Any], *, is_podman: bool) -> Self:
        """From the engine's answer to SystemInfo."""
        options = [str(one) for one in info.get("SecurityOptions") or ()]
        is_rootless = bool(info.get("Rootless")) or "name=rootless" in options
        without_groups = info.get("CgroupDriver") == "none" or str(info.get("CgroupVersion")) == "1"
        return cls(is_podman, is_rootless, not (is_rootless and without_groups))

    @property
    def label(self) -> str:
        """For people."""
        if not self.is_rootless:
            return "docker"
        return "docker (rootless)" if self.has_limits else "docker (rootless, NO limits)"

    def lacks(self, entry: Entry) -> Iterator[str]:
        """What the entry counts on and this engine cannot do, each as a clause that follows "server X"."""
        if entry.hosts and (self.is_podman or self.is_rootless):
            what = "Podman's networks" if self.is_podman else "a rootless engine's networks"
            yield (
                f"lists hosts, and {what} are not known to keep it to them; use a Docker Engine that root runs, or "
                "leave hosts out for no filter at all"
            )
        if entry.volumes and self.is_rootless:
            yield (
                "keeps data in volumes, whose folders containers of a rootless engine may not write: their users are "
                "not the gateway's; use an engine that root runs"
            )
