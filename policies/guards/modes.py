"""Which guards there are, and how each of them acts on arguments and on results."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

Guard = Literal["secrets", "personal", "hidden", "escapes", "markup", "size"]
Mode = Literal["off", "warn", "tag", "redact", "block"]
"""`warn` notes it in the audit record; `tag` notes it in the result's `_meta` too; `redact` replaces what was found;
`block` lets nothing through. Each does what the ones before it do."""
Side = Literal["arguments", "results"]

GUARDS: Final[tuple[Guard, ...]] = get_args(Guard)

MIB: Final = 1024 * 1024
MAX_BYTES: Final = 10 * MIB
MAX_ITEMS: Final = 10_000


@dataclass(frozen=True, slots=True)
class Guards:
    """The modes of one server's guards for one side. Guards that are not named are off."""

    modes: tuple[tuple[Guard, Mode], ...]
    max_bytes: int = MAX_BYTES
    """Of one result."""
    max_items: int = MAX_ITEMS
    """Content items of one result."""

    @classmethod
    def of(cls, modes: Mapping[Guard, Mode], max_bytes: int = MAX_BYTES, max_items: int = MAX_ITEMS) -> "Guards":
        on = tuple((guard, modes[guard]) for guard in GUARDS if modes.get(guard, "off") != "off")
        return cls(on, max_bytes, max_items)


DEFAULTS: Final[Mapping[Side, Mapping[Guard, Mode]]] = {
    "arguments": {"secrets": "warn", "personal": "off", "hidden": "warn", "escapes": "off", "size": "off"},
    "results": {
        "secrets": "warn", "personal": "off", "hidden": "tag", "escapes": "tag", "markup": "tag", "size": "redact",
    },
}  # fmt: skip
"""What holds where an entry says nothing: nobody's text is changed, and a result has an end."""
