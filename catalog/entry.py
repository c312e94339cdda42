"""One entry of the catalog: a server that may run, and everything that decides how it runs.

Does not know files or YAML, and starts nothing.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    StringConstraints,
    model_validator,
)

from catalog import reference

DIGEST_FORM = "lockgate-entry-1"
"""Part of each digest: raise it when the form below changes, so that old and new digests differ."""


def _freeze(value: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(value))


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("contains a NUL character")
    return text


def _one_line(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("must be one line of visible text")
    return text


def _distinct(what: str) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
    def check(values: tuple[str, ...]) -> tuple[str, ...]:
        if twice := duplicates(values):
            raise ValueError(f"{what} {', '.join(twice)} is listed twice")
        return values

    return check


def duplicates(values: Iterable[str]) -> list[str]:
    """Return the values that occur more than once, each once, in order."""
    seen: set[str] = set()
    twice: dict[str, None] = {}
    for value in values:
        if value in seen:
            twice[value] = None
        seen.add(value)
    return list(twice)


def refuse(messages: Sequence[str]) -> None:
    """Raise one ValueError with a line for each message, so that one pass reports them all; or return."""
    if messages:
        raise ValueError("\n".join(messages))


Id = Annotated[str, AfterValidator(reference.check_id)]
Line = Annotated[str, StringConstraints(max_length=500), AfterValidator(_one_line)]
Argument = Annotated[str, StringConstraints(max_length=32_768), AfterValidator(_no_nul)]
Variable = Annotated[str, AfterValidator(reference.check_variable)]
ToolName = Annotated[str, AfterValidator(reference.check_tool)]
Category = Annotated[str, AfterValidator(reference.check_category)]
Network = Literal["none", "internet"]

_StrictInt = Annotated[int, Strict()]
_StrictFloat = Annotated[float, Strict()]
_StrictBool = Annotated[bool, Strict()]
_Frozen = (AfterValidator(_freeze), PlainSerializer(dict, return_type=dict[str, str]))
Environment = Annotated[Mapping[Variable, Argument], Field(max_length=128), *_Frozen]
Headers = Annotated[
    Mapping[
        Annotated[str, AfterValidator(reference.check_header)],
        Annotated[str, StringConstraints(max_length=8192), AfterValidator(reference.check_header_value)],
    ],
    Field(max_length=32),
    *_Frozen,
]


class Part(BaseModel):
    """What all parts of a catalog share: frozen, and no key that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Package(Part):
    """A server published on PyPI or npm, at one exact version."""

    ecosystem: Literal["pypi", "npm"]
    name: str
    version: str
    pins: Annotated[tuple[str, ...], Field(max_length=32)] = ()
    """Requirements installed with the package, such as "mcp<2"."""
    apt: Annotated[
        tuple[Annotated[str, AfterValidator(reference.check_debian_package)], ...], Field(max_length=32)
    ] = ()
    """Debian packages whose programs the server calls."""

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        checks = [(reference.check_package_name, self.name), (reference.check_package_version, self.version)]
        checks += [(reference.check_pin, pin) for pin in self.pins]
        found = []
        for check, text in checks:
            try:
                check(self.ecosystem, text)
            except ValueError as exc:
                found.append(str(exc))
        refuse(found)
        return self


class Remote(Part):
    """A server that runs elsewhere and is reached over HTTP."""

    url: Annotated[str, StringConstraints(max_length=2048), AfterValidator(reference.check_remote_url)]
    transport: Literal["streamable-http", "sse"] = "streamable-http"
    headers: Headers = Field(default_factory=lambda: _freeze({}))


class Secret(Part):
    """A secret the server receives in a variable; its value is never in the catalog."""

    name: Annotated[str, AfterValidator(reference.check_secret_name)]
    """The owner's id, a dot, and a name: "brave.api_key"."""
    env: Variable
    required: _StrictBool = True


class Volume(Part):
    """A named folder that outlives the container."""

    name: Annotated[str, AfterValidator(reference.check_volume_name)]
    target: Annotated[str, AfterValidator(reference.check_target)]
    """Where the server finds it: an absolute path."""


class Limits(Part):
    """How much the server may use."""

    memory_mib: Annotated[_StrictInt, Field(ge=16, le=1_048_576)] = 512
    cpus: Annotated[_StrictFloat, Field(gt=0, le=256)] = 1.0
    pids: Annotated[_StrictInt, Field(ge=1, le=32_768)] = 128
    tmpfs_mib: Annotated[_StrictInt, Field(ge=1, le=65_536)] = 64
    start_timeout_s: Annotated[_StrictFloat, Field(gt=0, le=3600)] = 60.0
    call_timeout_s: Annotated[_StrictFloat, Field(gt=0, le=86_400)] = 60.0
    idle_s: Annotated[_StrictFloat, Field(gt=0, le=604_800)] = 600.0
    """How long an unused server keeps running."""


class Entry(Part):
    """One server that may run: as a published image, from a package, or remotely."""

    id: Id
    title: Annotated[Line, StringConstraints(max_length=80)]
    description: Line
    image: Annotated[str, AfterValidator(reference.check_image)] | None = None
    package: Package | None = None
    remote: Remote | None = None
    command: Annotated[tuple[Argument, ...], Field(max_length=256)] = ()
    """The full argv that runs the server from its package."""
    args: Annotated[tuple[Argument, ...], Field(max_length=256)] = ()
    """What follows the published image's own entrypoint."""
    env: Environment = Field(default_factory=lambda: _freeze({}))
    """Plain values, taken literally: there is no template language."""
    secrets: Annotated[tuple[Secret, ...], Field(max_length=32)] = ()
    volumes: Annotated[tuple[Volume, ...], Field(max_length=16)] = ()
    network: Network = "none"
    interactive: bool = False
    limits: Limits = Limits()
    categories: Annotated[tuple[Category, ...], Field(max_length=16), AfterValidator(_distinct("the category"))] = ()
    license: Annotated[Line, StringConstraints(max_length=80)] | None = None
    source: Annotated[str, StringConstraints(max_length=2048), AfterValidator(reference.check_source_url)] | None = None
    tools: Annotated[tuple[ToolName, ...], Field(max_length=1000), AfterValidator(_distinct("the tool"))] = ()
    """Names known in advance, for search and for selecting; the running server has the last word."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        refuse([*self._ways_to_run(), *self._secrets_in_order(), *self._volumes_in_order()])
        return self

    def _ways_to_run(self) -> Iterator[str]:
        if not (self.image or self.package or self.remote):
            yield "says nothing that could run; add image, package or remote"
        if self.package and not self.command:
            yield "has a package but no command; add command, the argv that starts the server from it"
        if self.command and not self.package:
            yield "has a command but no package to run it from; an image takes its arguments in args"
        if self.command and (not self.command[0] or "/" in self.command[0] or self.command[0].startswith("-")):
            yield "command must begin with the name of a program the package installs, without a path"
        if self.args and not self.image:
            yield "has args but no image to give them to; a package takes its arguments in command"
        if not (self.image or self.package) and (self.env or self.volumes):
            yield "is only remote, where env and volumes have no effect; remove them"

    def _secrets_in_order(self) -> Iterator[str]:
        for secret in self.secrets:
            owner, _, name = secret.name.partition(".")
            if owner != self.id:
                yield f"asks for {secret.name}, a secret of another server; name it {self.id}.{name}"
            if secret.env in self.env:
                yield f"sets {secret.env} both in env and from a secret; remove one of them"
        if twice := duplicates(secret.name for secret in self.secrets):
            yield f"the secret {', '.join(twice)} is listed twice; remove one of them"
        if twice := duplicates(secret.env for secret in self.secrets):
            yield f"two secrets set the variable {', '.join(twice)}; give each its own"

    def _volumes_in_order(self) -> Iterator[str]:
        if twice := duplicates(volume.name for volume in self.volumes):
            yield f"the volume {', '.join(twice)} is listed twice; give each its own name"
        if twice := duplicates(volume.target for volume in self.volumes):
            yield f"{', '.join(twice)} is the target of two volumes; give each its own"

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex over the parts that decide what runs; titles and the like do not change it."""
        deciding = self.model_dump(
            mode="json",
            include={
                "image", "package", "remote", "command", "args", "env", "volumes", "network", "limits",
            },
        )  # fmt: skip
        text = json.dumps([DIGEST_FORM, deciding], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with changes, checked like any entry; pydantic's own would keep the old digest."""
        return type(self).model_validate({**self.model_dump(), **(update or {})})

    def __hash__(self) -> int:
        return hash((self.id, self.digest))
