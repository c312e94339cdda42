"""The rules of whoever is responsible for the machine: what may run of any catalog, whoever made it.

Does not judge entries: it is read and checked here, and the gateway applies it.

    version: 1
    allow:                             # what is not named may be anything; an empty list is nothing
      registries: [docker.io/mcp/*]    # where images and catalogs may come from
      publishers: [acme]               # whose images may run, by their signatures
      packages: [pypi, "npm:@acme/*"]  # whole ecosystems, or packages
      remotes: ["*.acme.com"]          # hosts of remote servers
      networks: [none]                 # what servers that run here may reach
    signed: ["ghcr.io/acme/*"]         # images that run only with a signature by a publisher
    block:
      - {image: docker.io/acme/old, reason: It leaks; take acme/new.}
    publishers: {}                     # as in a catalog
"""

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PlainSerializer,
    StringConstraints,
    ValidationError,
    model_validator,
)

from catalog import reference
from catalog.assembly import say
from catalog.errors import CatalogInvalid, Problem
from catalog.loader import compose
from catalog.located import Mapping as Located
from catalog.located import find, plain
from catalog.parts import Id, Line, Network, Part, refuse
from catalog.publisher import Identity, Publisher, check_images, covers
from catalog.spelling import quoted
from catalog.textfile import read_text

EVERYTHING = "*"
_HOST = re.compile(r"(?:\*\.)?[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")


def _images(text: str) -> str:
    return text if text == EVERYTHING else check_images(text)


def _host(text: str) -> str:
    if text != EVERYTHING and not _HOST.fullmatch(text):
        raise ValueError(f"{quoted(text)} is no host; write mcp.acme.com, or *.acme.com for all below")
    return text


def _package(text: str) -> str:
    ecosystem, colon, name = text.partition(":")
    if ecosystem not in ("pypi", "npm"):
        raise ValueError(f"{quoted(text)} names no packages; write pypi, npm, pypi:NAME or npm:@scope/*")
    if colon:
        reference.check_package_name(ecosystem, name.replace("*", "x") if name.endswith("*") else name)
    return text


def _named(value: Any) -> Any:
    """The name of a publisher is the key above it."""
    if not isinstance(value, dict):
        return value
    return {name: {**one, "name": name} if isinstance(one, dict) else one for name, one in value.items()}


def _freeze(value: Mapping[str, Publisher]) -> Mapping[str, Publisher]:
    return MappingProxyType(dict(value))


Publishers = Annotated[
    Mapping[Id, Publisher],
    BeforeValidator(_named),
    AfterValidator(_freeze),
    PlainSerializer(dict, return_type=dict[str, Publisher]),
]
Images = Annotated[str, StringConstraints(max_length=255), AfterValidator(_images)]
HostPattern = Annotated[str, StringConstraints(max_length=253), AfterValidator(_host)]
PackagePattern = Annotated[str, AfterValidator(_package)]
_MANY = Field(max_length=500)


class Allow(Part):
    """What may run; None where that is not restricted."""

    registries: Annotated[tuple[Images, ...], _MANY] | None = None
    publishers: Annotated[tuple[Id, ...], _MANY] | None = None
    packages: Annotated[tuple[PackagePattern, ...], _MANY] | None = None
    remotes: Annotated[tuple[HostPattern, ...], _MANY] | None = None
    networks: Annotated[tuple[Network, ...], _MANY] | None = None


class Block(Part):
    """One thing that must not run, and why."""

    entry: Id | None = None
    image: Images | None = None
    package: PackagePattern | None = None
    remote: HostPattern | None = None
    reason: Line
    """Shown to whoever asks for it."""

    @model_validator(mode="after")
    def _check_one(self) -> Self:
        if sum(what is not None for what in (self.entry, self.image, self.package, self.remote)) != 1:
            refuse(["must name exactly one of entry, image, package and remote"])
        return self


class Rules(Part):
    """One rules file."""

    version: Literal[1] = 1
    allow: Allow = Allow()
    signed: Annotated[tuple[Images, ...], _MANY] = ()
    block: Annotated[tuple[Block, ...], Field(max_length=5000)] = ()
    publishers: Publishers = Field(default_factory=lambda: _freeze({}))

    @model_validator(mode="after")
    def _check_publishers(self) -> Self:
        unknown = [name for name in self.allow.publishers or () if name not in self.publishers]
        if unknown:
            refuse([f"allow names the publisher {', '.join(unknown)}, which this file does not define; add its keys"])
        return self


PARTS: Mapping[str, type[Part]] = {"allow": Allow, "block": Block, "publishers": Publisher, "identities": Identity}


def host_fits(pattern: str, host: str) -> bool:
    """Whether a host is the one, or one of those below it, that the pattern names."""
    if pattern == EVERYTHING:
        return True
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def package_fits(pattern: str, ecosystem: str, name: str) -> bool:
    """Whether a package is what the pattern names; PyPI takes `-`, `_` and `.` for the same."""
    of, colon, wanted = pattern.partition(":")
    if of != ecosystem:
        return False
    if not colon:
        return True
    name, wanted = (_plain_name(ecosystem, text) for text in (name, wanted))
    return name.startswith(wanted[:-1]) if wanted.endswith("*") else name == wanted


def image_fits(pattern: str, repository: str) -> bool:
    """Whether a repository (registry and path, in full) is what the pattern names."""
    return pattern == EVERYTHING or covers(pattern, repository)


def _plain_name(ecosystem: str, name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower() if ecosystem == "pypi" else name


def load_rules(path: Path) -> Rules:
    """Read a rules file, as strictly as a catalog.

    Raises:
        CatalogUnreadable: it cannot be read.
        CatalogInvalid: it breaks rules; all problems found are in .problems.
    """
    root, problems = compose(path, read_text(path))
    if not isinstance(root, Located):
        raise CatalogInvalid(
            [*problems, Problem(path, root.line, None, "must be a mapping that begins with version: 1")]
        )
    if "version" not in root.members:
        problems.append(Problem(path, root.line, None, "the key version is missing; write version: 1 at the top"))
    rules = Rules()
    try:
        rules = Rules.model_validate(plain(root))
    except ValidationError as exc:
        for error in exc.errors(include_url=False):
            line = find(root, error["loc"])[0] if error["loc"] else root.line
            problems += [Problem(path, line, None, message) for message in say(Rules, root, error, PARTS)]
    if problems:
        raise CatalogInvalid(sorted(problems, key=lambda problem: problem.line or 0))
    return rules
