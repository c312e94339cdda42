"""One entry of the catalog: a server that may run, and everything that decides how it runs.

Does not know files or YAML, and starts nothing.
"""

import hashlib
import json
import posixpath
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, StringConstraints, ValidationError, model_validator

from catalog import reference
from catalog.errors import ConfigInvalid, Problem
from catalog.guards import Guarding
from catalog.parts import (
    Argument,
    Category,
    ContainerRuntime,
    Environment,
    Host,
    Id,
    Limits,
    Line,
    Mount,
    Network,
    OAuth,
    Package,
    Part,
    Remote,
    Sampling,
    Secret,
    SettingName,
    Tasks,
    ToolName,
    Transport,
    TruthValue,
    Volume,
    WholeNumber,
    distinct,
    duplicates,
    form,
    freeze,
    refuse,
)
from catalog.percall import CallTool
from catalog.setting import Plain, Setting, as_arguments, as_text, check_values

DIGEST_FORM = "lockgate-entry-3"
"""Part of each digest: raise it when the form below changes, so that old and new digests differ."""


class Entry(Part):
    """One server that may run: as a published image, from a package, remotely, or as a container for each call."""

    id: Id
    title: Annotated[Line, StringConstraints(max_length=80)]
    description: Line
    image: Annotated[str, AfterValidator(reference.check_image)] | None = None
    package: Package | None = None
    remote: Remote | None = None
    per_call: Annotated[tuple[CallTool, ...], Field(max_length=100)] = ()
    """Tools each call of which runs a container of its own; such an entry has no server."""
    built_in: Literal["agent"] | None = None
    """A server that is part of the gateway: agent lets a local model work with the caller's tools."""
    transport: Transport = "stdio"
    """How the container is spoken to; http and sse are served by it on port, below path."""
    port: Annotated[WholeNumber, Field(ge=1, le=65_535)] | None = None
    path: Annotated[str, AfterValidator(reference.check_url_path), form("path")] | None = None
    command: Annotated[tuple[Argument, ...], Field(max_length=256)] = ()
    """The full argv that runs the server from its package."""
    args: Annotated[tuple[Argument, ...], Field(max_length=256)] = ()
    """What follows the published image's own entrypoint."""
    env: Environment = Field(default_factory=lambda: freeze({}))
    """Plain values, taken literally: there is no template language."""
    config: Annotated[tuple[Setting, ...], Field(max_length=64)] = ()
    """What a person may or must configure before the server runs."""
    config_any_of: Annotated[tuple[tuple[SettingName, ...], ...], Field(max_length=8)] = ()
    """Groups of settings, of which one must be there completely."""
    secrets: Annotated[tuple[Secret, ...], Field(max_length=32)] = ()
    oauth: OAuth | None = None
    volumes: Annotated[tuple[Volume, ...], Field(max_length=16)] = ()
    mounts: Annotated[tuple[Mount, ...], Field(max_length=16)] = ()
    network: Network = "none"
    hosts: Annotated[tuple[Host, ...], Field(max_length=64), AfterValidator(distinct("the host"))] = ()
    """With network: internet, the only addresses the server may reach; none listed means any."""
    container_runtime: ContainerRuntime | None = None
    """A runtime of the engine with stronger isolation, such as runsc; None is the gateway's setting."""
    interactive: bool = False
    prewarm: bool = False
    limits: Limits = Limits()
    sampling: Sampling = Sampling()
    tasks: Tasks = Tasks()
    guards: Guarding = Guarding()
    categories: Annotated[tuple[Category, ...], Field(max_length=16), AfterValidator(distinct("the category"))] = ()
    license: Annotated[Line, StringConstraints(max_length=80)] | None = None
    publisher: Annotated[Line, StringConstraints(max_length=80)] | None = None
    """Who publishes the server: the owner of its source."""
    source: Annotated[str, StringConstraints(max_length=2048), AfterValidator(reference.check_source_url)] | None = None
    tools: Annotated[tuple[ToolName, ...], Field(max_length=1000), AfterValidator(distinct("the tool"))] = ()
    """Names known in advance, for search and for selecting; the running server has the last word."""
    dynamic_tools: TruthValue = False
    """Whether the tools are known only after a sign-in."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        refuse(
            [
                *self._ways_to_run(),
                *self._transport_in_order(),
                *self._secrets_in_order(),
                *self._volumes_in_order(),
                *self._config_in_order(),
            ]
        )
        return self

    def _ways_to_run(self) -> Iterator[str]:
        if not (self.image or self.package or self.remote or self.per_call or self.built_in):
            yield "says nothing that could run; add image, package or remote (or per_call)"
        if self.per_call and (self.image or self.package or self.remote):
            yield "has per_call beside image, package or remote; each call runs a container of its own, so remove one"
        if self.built_in and (self.image or self.package or self.remote or self.per_call or self.network != "none"):
            yield "has built_in beside what would run elsewhere; such a server is part of the gateway: remove the rest"
        if self.package and not self.command:
            yield "has a package but no command; add command, the argv that starts the server from it"
        if self.command and not self.package:
            yield "has a command but no package to run it from; an image takes its arguments in args"
        if self.command and (not self.command[0] or "/" in self.command[0] or self.command[0].startswith("-")):
            yield "command must begin with the name of a program the package installs, without a path"
        if self.args and not self.image:
            yield "has args but no image to give them to; a package takes its arguments in command"
        if not (self.image or self.package) and (self.env or self.volumes or self.mounts or self.hosts):
            yield "is only remote or per call, where env, volumes, mounts and hosts have no effect; remove them"
        if self.hosts and self.network == "none":
            yield "lists hosts but has network: none; write network: internet"

    def _transport_in_order(self) -> Iterator[str]:
        if self.transport != "stdio" and not self.image:
            yield f"has transport {self.transport} but no image that could serve it; a package speaks over stdio"
        if self.transport != "stdio" and self.port is None:
            yield f"has transport {self.transport} but no port; add the one its container listens on"
        if self.transport == "stdio" and (self.port is not None or self.path is not None):
            yield "has a port or path but transport stdio; remove them, or write transport: http"

    def _secrets_in_order(self) -> Iterator[str]:
        for secret in self.secrets:
            owner, _, name = secret.name.partition(".")
            if owner != self.entry_id:
                yield f"asks for {secret.name}, a secret of another server; name it {self.entry_id}.{name}"
            if secret.env is not None and secret.env in self.env:
                yield f"sets {secret.env} both in env and from a secret; remove one of them"
        if twice := duplicates(secret.name for secret in self.secrets):
            yield f"the secret {', '.join(twice)} is listed twice; remove one of them"
        if twice := duplicates(secret.env for secret in self.secrets if secret.env is not None):
            yield f"two secrets set the variable {', '.join(twice)}; give each its own"
        if twice := duplicates(secret.file for secret in self.secrets if secret.file is not None):
            yield f"two secrets are written to the file {', '.join(twice)}; give each its own"
        headers = [secret.header.lower() for secret in self.secrets if secret.header is not None]
        headers += [name.lower() for name in (self.remote.headers if self.remote is not None else ())]
        if twice := duplicates(headers):
            yield f"the header {', '.join(twice)} is set twice, by a secret and elsewhere too; give each its own"
        if any(secret.header for secret in self.secrets) and self.remote is None:
            yield "sends a secret in a header, but is not remote; use env"
        if self.oauth is not None and self.oauth.secret is not None:
            owner, _, name = self.oauth.secret.partition(".")
            if owner != self.entry_id:
                yield f"asks for {self.oauth.secret}, a secret of another server; name it {self.entry_id}.{name}"

    def _volumes_in_order(self) -> Iterator[str]:
        if twice := duplicates(volume.name for volume in self.volumes):
            yield f"the volume {', '.join(twice)} is listed twice; give each its own name"
        targets = [volume.target for volume in self.volumes]
        targets += [mount.target for mount in self.mounts if mount.target is not None]
        if twice := duplicates(targets):
            yield f"{', '.join(twice)} is the target of two volumes; give each its own"

    def _config_in_order(self) -> Iterator[str]:
        names = [setting.name for setting in self.config]
        if twice := duplicates(names):
            yield f"the setting {', '.join(twice)} is listed twice; remove one of them"
        taken = {*self.env, *(secret.env for secret in self.secrets if secret.env is not None)}
        variables = [setting.env for setting in self.config if setting.env is not None]
        if twice := duplicates([*taken, *variables]):
            yield f"the variable {', '.join(twice)} is set by a setting and elsewhere too; give each its own"
        asked = [mount.config for mount in self.mounts if mount.config is not None]
        asked += [name for names in self.config_any_of for name in names]
        for name in dict.fromkeys(asked):
            if name not in names:
                yield f"names the setting {name}, which is not in config; add it there"

    @property
    def entry_id(self) -> str:
        """The id in the catalog: its own, unless this is an instance."""
        return self.id

    @property
    def installed_command(self) -> tuple[str, ...]:
        """The command that an image of the package is made with."""
        return self.command

    def kept_as(self, secret: str) -> str:
        """The name under which one of its secrets is kept: the secret's own, unless this is an instance."""
        return secret

    @cached_property
    def may_ask(self) -> bool:
        """Whether it may put questions in the middle of a call, so that callers share no connection."""
        return self.interactive or self.sampling.by in ("either", "local")

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex over the parts that decide what runs; titles and the like do not change it."""
        deciding = self.model_dump(
            mode="json",
            include={
                "image", "package", "remote", "per_call", "built_in", "transport", "port", "path", "command", "args",
                "env", "config", "config_any_of", "secrets", "volumes", "mounts", "network", "hosts", "limits",
                "container_runtime",
            },
        )  # fmt: skip
        text = json.dumps([DIGEST_FORM, deciding], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def configured(self, values: Mapping[str, object]) -> Self:
        """Return the entry with values in place of its settings: plain text in env, args, command and mounts.

        Each value is one variable or whole arguments. Nothing in it is expanded, split or read again.

        Raises:
            ConfigInvalid: unknown settings, wrong types, missing values; all of them at once.
        """
        found = check_values(self.id, self.config, self.config_any_of, values)
        mounts = self._settled_mounts(found)
        env, arguments = dict(self.env), list[str]()
        targets = {mount.config: mount.target for mount in self.mounts if mount.config is not None}
        for setting in self.config:
            if setting.name not in found:
                continue
            value = found[setting.name]
            if setting.name in targets:
                value = _inside(value, targets[setting.name])
            if setting.env is not None:
                env[setting.env] = as_text(value)
            if setting.arg is not None:
                arguments += as_arguments(setting.arg, value)
        return self.model_copy(
            update={
                "env": env,
                "args": (*self.args, *arguments) if self.image else self.args,
                "command": (*self.command, *arguments) if self.package else self.command,
                "mounts": mounts,
                "config": (),
                "config_any_of": (),
            }
        )

    def _settled_mounts(self, found: Mapping[str, Plain]) -> list[Mount]:
        try:
            return [settled for mount in self.mounts for settled in _settled(mount, found)]
        except ValidationError as exc:
            messages = [f"a path to mount {error['msg'].removeprefix('Value error, ')}" for error in exc.errors()]
            raise ConfigInvalid([Problem(None, None, self.id, message) for message in messages]) from exc

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with changes, checked like any entry; pydantic's own would keep the old digest."""
        return type(self).model_validate({**self.model_dump(), **(update or {})})

    def __hash__(self) -> int:
        return hash((self.id, self.digest))


def _hosts_paths(value: Plain) -> tuple[str, ...]:
    return value if isinstance(value, tuple) else (as_text(value),)


def _inside(value: Plain, target: str | None) -> Plain:
    """Return where the server finds what is mounted."""
    if target is None:
        return value
    if isinstance(value, tuple):
        return tuple(posixpath.join(target, posixpath.basename(path)) for path in value)
    return target


def _settled(mount: Mount, found: Mapping[str, Plain]) -> Iterator[Mount]:
    """Yield the mounts with their paths on the host; none for a setting without a value."""
    if mount.config is None:
        yield mount
    elif mount.config in found:
        value = found[mount.config]
        for path in _hosts_paths(value):
            target = mount.target
            if target is not None and isinstance(value, tuple):
                target = posixpath.join(target, posixpath.basename(path))
            yield Mount(source=path, target=target or path, read_only=mount.read_only)
