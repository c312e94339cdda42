"""The parts an entry is made of: packages, remotes, secrets, folders, network addresses, limits, tasks.

Does not know how they fit together in one entry, nor files or YAML.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Annotated, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    Strict,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)

from catalog import reference


def freeze(value: Mapping[str, str]) -> Mapping[str, str]:
    return MappingProxyType(dict(value))


def _no_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("contains a NUL character")
    return text


def _one_line(text: str) -> str:
    if not text.isprintable() or not text.strip():
        raise ValueError("must be one line of visible text")
    return text


def distinct(what: str) -> Callable[[tuple[str, ...]], tuple[str, ...]]:
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


def form(name: str) -> WithJsonSchema:
    """What the published schema says of a text that one of the checks in reference.py judges."""
    return WithJsonSchema({"type": "string", "pattern": reference.FORMS[name]})


Id = Annotated[str, AfterValidator(reference.check_id), form("id")]
Line = Annotated[str, StringConstraints(max_length=500), AfterValidator(_one_line)]
Argument = Annotated[str, StringConstraints(max_length=32_768), AfterValidator(_no_nul)]
Variable = Annotated[str, AfterValidator(reference.check_variable), form("variable")]
ToolName = Annotated[str, AfterValidator(reference.check_tool), form("tool")]
Category = Annotated[str, AfterValidator(reference.check_category), form("category")]
SettingName = Annotated[str, AfterValidator(reference.check_setting_name), form("setting")]
Host = Annotated[str, AfterValidator(reference.check_host), form("host")]
Network = Literal["none", "internet"]
ContainerRuntime = Annotated[str, AfterValidator(reference.check_container_runtime)]
Transport = Literal["stdio", "http", "sse"]

WholeNumber = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
TruthValue = Annotated[bool, Strict()]
_Frozen = (AfterValidator(freeze), PlainSerializer(dict, return_type=dict[str, str]))
Environment = Annotated[Mapping[Variable, Argument], Field(max_length=128), *_Frozen]
Headers = Annotated[
    Mapping[
        Annotated[str, AfterValidator(reference.check_header), form("header")],
        Annotated[str, StringConstraints(max_length=8192), AfterValidator(reference.check_header_value)],
    ],
    Field(max_length=32),
    *_Frozen,
]


class Part(BaseModel):
    """What all parts of a catalog share: frozen, and no key that nobody reads."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def keys_of(part: type[BaseModel]) -> tuple[str, ...]:
    """Return the keys of a part as they are written."""
    return tuple(field.alias or name for name, field in part.model_fields.items())


class Package(Part):
    """A server published on PyPI or npm, at one exact version."""

    ecosystem: Literal["pypi", "npm"]
    name: str
    version: str
    pins: Annotated[tuple[str, ...], Field(max_length=32)] = ()
    """Requirements installed with the package, such as "mcp<2"."""
    apt: Annotated[
        tuple[Annotated[str, AfterValidator(reference.check_debian_package), form("debian")], ...], Field(max_length=32)
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
    headers: Headers = Field(default_factory=lambda: freeze({}))


class Secret(Part):
    """A secret the server receives in a variable or file, or a remote one in a header; its value is never in the
    catalog."""

    name: Annotated[str, AfterValidator(reference.check_secret_name), form("secret")]
    """The owner's id, a dot, and a name: "brave.api_key"."""
    env: Variable | None = None
    file: Annotated[str, AfterValidator(reference.check_volume_name), form("volume")] | None = None
    """The name of a file in /run/secrets, for servers that read a secret from one."""
    plain_env: TruthValue = False
    """Put the variable into the container's own environment, where everybody with access to the engine can read it."""
    header: Annotated[str, AfterValidator(reference.check_header), form("header")] | None = None
    prefix: Annotated[str, StringConstraints(max_length=64), AfterValidator(reference.check_header_value)] = ""
    """What stands before the value in the header: "Bearer "."""
    required: TruthValue = True

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        messages = []
        if self.env is None and self.file is None and self.header is None:
            messages.append(f"the secret {self.name} goes nowhere; add env, a variable, or file or header")
        if self.plain_env and self.env is None:
            messages.append(f"the secret {self.name} has plain_env but no env")
        if self.prefix and self.header is None:
            messages.append(f"the secret {self.name} has a prefix but no header to write it in")
        refuse(messages)
        return self


class OAuth(Part):
    """A sign-in at a provider, in place of a secret that somebody types in."""

    provider: Id
    secret: Annotated[str, AfterValidator(reference.check_secret_name), form("secret")] | None = None
    """The secret that may stand in for the sign-in: a token made by hand."""
    env: Variable | None = None
    """The variable in which a server in a container expects the token."""
    scopes: Annotated[
        tuple[Annotated[str, AfterValidator(reference.check_scope), form("scope")], ...],
        Field(max_length=64),
        AfterValidator(distinct("the scope")),
    ] = ()


class Volume(Part):
    """A named folder that outlives the container."""

    name: Annotated[str, AfterValidator(reference.check_volume_name), form("volume")]
    target: Annotated[str, AfterValidator(reference.check_target), form("target")]
    """Where the server finds it: an absolute path."""


class Mount(Part):
    """A folder or file of the host that the server sees: named in a setting, or written in the catalog."""

    config: SettingName | None = None
    """The setting that holds the path on the host, or a list of such paths."""
    source: Annotated[str, AfterValidator(reference.check_host_path)] | None = None
    """The path on the host itself."""
    target: Annotated[str, AfterValidator(reference.check_mount_target), form("mount")] | None = None
    """Where the server finds it; None is the same path as on the host. Of a list, each lies below, by its name."""
    read_only: TruthValue = True

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if (self.config is None) == (self.source is None):
            refuse(["a mount has either config, the setting with the path, or source, the path itself"])
        return self


class Limits(Part):
    """How much the server may use."""

    memory_mib: Annotated[WholeNumber, Field(ge=16, le=1_048_576)] = 512
    cpus: Annotated[Number, Field(gt=0, le=256)] = 1.0
    pids: Annotated[WholeNumber, Field(ge=1, le=32_768)] = 128
    tmpfs_mib: Annotated[WholeNumber, Field(ge=1, le=65_536)] = 64
    volume_mib: Annotated[WholeNumber, Field(ge=1, le=1_048_576)] = 1024
    """What its volumes may hold together; no single file may be larger."""
    gpus: Annotated[WholeNumber, Field(ge=0, le=64)] = 0
    start_timeout_s: Annotated[Number, Field(gt=0, le=3600)] = 60.0
    call_timeout_s: Annotated[Number, Field(gt=0, le=86_400)] = 60.0
    idle_s: Annotated[Number, Field(gt=0, le=604_800)] = 600.0
    """How long an unused server keeps running."""
    instances: Annotated[WholeNumber, Field(ge=1, le=256)] = 16
    """How many of its containers or processes may run at once, for callers that cannot share one."""


class Sampling(Part):
    """Who answers when the server asks for a language model, and how much of one here it may use in a call."""

    by: Literal["client", "either", "local", "nobody"] = "client"
    """The client that made the call; where that cannot, a model here (either); always a model here; nobody."""
    requests: Annotated[WholeNumber, Field(ge=1, le=64)] = 4
    """What a model here answers in one call of a tool."""
    tokens: Annotated[WholeNumber, Field(ge=16, le=1_048_576)] = 8192
    """Of those requests and their answers together."""


class Tasks(Part):
    """When a call becomes a task, for clients that take tasks and a server that makes none itself."""

    after_s: Annotated[Number, Field(ge=0, le=3600)] = 2.0
    """How long a call may take before its client gets a task in place of the result; at 0 it always gets one."""
    only: Annotated[tuple[ToolName, ...], Field(max_length=1000), AfterValidator(distinct("the tool"))] = ()
    """Tools whose calls take too long to wait for: clients that take no tasks are refused."""
