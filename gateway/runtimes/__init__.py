"""What starts a server: the `Runtime` protocol and its implementations (docker, process, remote).

Knows entries and channels; not callers, policies or listings."""

from __future__ import annotations

from typing import Protocol

from catalog import Entry
from gateway.serverlog import ServerLog
from gateway.wire.channel import Channel, Receiver


class Runtime(Protocol):
    """Starts servers. One implementation per way of running them; each passes tests/gateway/test_runtimes.py."""

    @property
    def name(self) -> str:
        """`docker`, `process` or `remote`."""

    async def prepare(self, entry: Entry, log: ServerLog) -> None:
        """Fetch, build or install what `start` needs; may take minutes the first time, then nothing.

        Raises:
            UpstreamUnavailable: it cannot be had.
        """

    async def start(self, entry: Entry, receiver: Receiver, log: ServerLog, owner: str = "") -> Channel:
        """Start one server, with the secrets of `owner`'s own where a principal is named. The caller owns the channel
        and must close it; when cancelled or failed nothing is left.

        Raises:
            UpstreamUnavailable: it could not be started; the message says why and what to do.
        """

    async def aclose(self) -> None:
        """Release what outlives single servers."""
