"""Names of images, taken apart by Docker's rules.

Knows text only: a well-formed name may not exist."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from catalog.publisher import in_full

HUB: Final = "docker.io"
HUB_HOST: Final = "registry-1.docker.io"


@dataclass(frozen=True)
class ImageName:
    """`registry/repository:tag@digest`, with what Docker leaves out put in."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @property
    def full(self) -> str:
        """Registry and repository: what signatures name, and what publishers are matched by."""
        return f"{self.registry}/{self.repository}"

    @property
    def host(self) -> str:
        """Whom to ask over HTTP."""
        return HUB_HOST if self.registry == HUB else self.registry

    @property
    def tagged(self) -> str:
        return f"{self.full}:{self.tag or 'latest'}"

    @property
    def pinned(self) -> str:
        return f"{self.full}@{self.digest}"

    def at(self, digest: str) -> ImageName:
        return replace(self, digest=digest)


def parse(reference: str) -> ImageName:
    """Take a reference apart; Docker Hub's short names become long ones."""
    rest, _, digest = reference.partition("@")
    name, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        name, tag = rest, ""
    first, slash, path = name.partition("/")
    if not slash or not (first == "localhost" or "." in first or ":" in first):
        first, path = HUB, name
    first, path = in_full(first, path)
    return ImageName(first, path, tag or None, digest or None)
