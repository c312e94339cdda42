"""An instance: an entry as a profile uses it, with settings, secrets or a name of its own.

Does not know profiles. What runs as one instance is shared by all who want exactly it, and shares nothing with others.
"""

import hashlib
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, PlainSerializer

from catalog import reference
from catalog.entry import Entry
from catalog.errors import CatalogError
from catalog.parts import Argument, Id, SettingName, form, freeze
from catalog.setting import Value

ID_DIGITS = 12
"""Hexadecimal digits that tell the instances of one name apart: 48 bits."""
DIGEST_FORM = "lockgate-instance-1"
"""Part of each id: raise it when what is hashed changes its meaning."""


def _freeze(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(value))


Settings = Annotated[
    Mapping[SettingName, Value],
    Field(max_length=64),
    AfterValidator(_freeze),
    PlainSerializer(dict, return_type=dict[str, Any]),
]
Secrets = Annotated[
    Mapping[
        Annotated[str, AfterValidator(reference.check_secret_name), form("secret")],
        Annotated[str, AfterValidator(reference.check_secret_reference), form("secret-reference")],
    ],
    Field(max_length=32),
    AfterValidator(freeze),
    PlainSerializer(dict, return_type=dict[str, str]),
]


def instance_id(name: str, entry: str, settings: Mapping[str, object], secrets: Mapping[str, str]) -> str:
    """Return the id of what runs: the entry's own, if nothing is particular about it.

    Equal names, settings and secrets are one instance, whichever profile has them. The entry's contents are no part of
    it, so that a new version of a server keeps its data.
    """
    if name == entry and not settings and not secrets:
        return entry
    text = json.dumps([DIGEST_FORM, name, entry, dict(settings), dict(secrets)], sort_keys=True, separators=(",", ":"))
    return f"{name}.{hashlib.sha256(text.encode()).hexdigest()[:ID_DIGITS]}"


class Instance(Entry):
    """One entry, configured. No entry has such an id, as ids have no dot."""

    id: str
    of: Id
    settings: Settings = Field(default_factory=lambda: _freeze({}))
    secret_names: Mapping[str, str] = Field(default_factory=lambda: freeze({}))
    program: tuple[Argument, ...] = ()
    """The command of the entry without these settings: they are for running, and change no image."""

    @property
    def entry_id(self) -> str:
        return self.of

    @property
    def installed_command(self) -> tuple[str, ...]:
        return self.program or self.command

    def kept_as(self, secret: str) -> str:
        return self.secret_names.get(secret, secret)

    def configured(self, values: Mapping[str, object]) -> Self:
        """As of an entry; what is set here counts unless it is given another value."""
        found = super().configured({**self.settings, **values})
        return found.model_copy(update={"settings": {}})


def instance(id: str, entry: Entry, settings: Mapping[str, object], secrets: Mapping[str, str]) -> Entry:
    """Return what runs under an id of `instance_id`."""
    if id == entry.id:
        return entry
    members = entry.model_dump()
    members |= {"id": id, "of": entry.id, "settings": dict(settings), "secret_names": dict(secrets)}
    return Instance.model_validate({**members, "program": _plain_command(entry)})


def _plain_command(entry: Entry) -> tuple[str, ...]:
    """The command with the defaults of its settings, as the entry itself has it when it runs."""
    try:
        return entry.configured({}).command
    except CatalogError:
        return entry.command
