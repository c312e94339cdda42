"""A setting of an entry: what a person may configure, of which type, and how the value reaches the server.

Does not know where values come from, and expands nothing: a value is one variable or whole arguments, never a
piece of text that is read again.
"""

from collections.abc import Mapping
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import AfterValidator, Field, PlainValidator, StringConstraints, WithJsonSchema, model_validator

from catalog.errors import ConfigInvalid, Problem
from catalog.parts import Argument, Part, SettingName, TruthValue, Variable, distinct, refuse
from catalog.spelling import did_you_mean, quoted

Plain: TypeAlias = str | int | float | bool | tuple[str, ...]
Type = Literal["string", "integer", "number", "boolean", "list"]

MAX_TEXT = 8192
"""Characters in one value."""
MAX_ITEMS = 64
"""Values in one list."""

_NAMES = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "list": "a list of texts",
}


def _plain(value: object) -> Plain:
    if isinstance(value, list):
        value = tuple(value)
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, tuple) and all(isinstance(item, str) for item in value):
        return value
    raise ValueError("must be text, a number in plain digits, true, false or a list of texts; put text in quotes")


Value = Annotated[
    Plain,
    PlainValidator(_plain),
    WithJsonSchema({"type": ["string", "number", "boolean", "array"], "items": {"type": "string"}}),
]


class Setting(Part):
    """One thing to configure."""

    name: SettingName
    type: Type = "string"
    required: TruthValue = False
    default: Value | None = None
    example: Value | None = None
    """Only shown."""
    enum: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=200)], ...],
        Field(max_length=100),
        AfterValidator(distinct("the value")),
    ] = ()
    """The only values there are, for text."""
    env: Variable | None = None
    """The variable that carries the value; a list is joined by commas."""
    arg: Argument | None = None
    """What stands before the value in an argument, as in "--level="; "" for the value alone. A list makes one
    argument of each item."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        messages = []
        if self.enum and self.type != "string":
            messages.append(f"the setting {self.name} lists values in enum, which is for type string")
        if self.required and self.default is not None:
            messages.append(f"the setting {self.name} is required and has a default; remove one of them")
        for key, value in (("default", self.default), ("example", self.example)):
            if value is not None and (wrong := self.wrong(value)):
                messages.append(f"the {key} of {self.name} {wrong}")
        refuse(messages)
        return self

    def wrong(self, value: object) -> str:
        """Return what is wrong with a value, without repeating it, or an empty string."""
        fits = {
            "string": isinstance(value, str),
            "integer": isinstance(value, int) and not isinstance(value, bool),
            "number": isinstance(value, int | float) and not isinstance(value, bool),
            "boolean": isinstance(value, bool),
            "list": isinstance(value, tuple | list) and all(isinstance(item, str) for item in value),
        }
        if not fits[self.type]:
            return f"must be {_NAMES[self.type]}"
        texts = [value] if isinstance(value, str) else value if isinstance(value, tuple | list) else []
        if len(texts) > MAX_ITEMS:
            return f"has more than {MAX_ITEMS} values"
        if any(len(text) > MAX_TEXT for text in texts):
            return f"is longer than {MAX_TEXT} characters"
        if any("\0" in text for text in texts):
            return "contains a NUL character"
        if self.enum and value not in self.enum:
            return f"must be one of {', '.join(self.enum)}"
        return ""


def check_values(
    owner: str, settings: tuple[Setting, ...], any_of: tuple[tuple[str, ...], ...], values: Mapping[str, object]
) -> dict[str, Plain]:
    """Return the value of each setting that has one: given, else its default.

    Raises:
        ConfigInvalid: unknown names, wrong types, missing values; all of them at once.
    """
    known = {setting.name: setting for setting in settings}
    messages = [
        f"there is no setting {quoted(name)}{did_you_mean(name, known)}" for name in values if name not in known
    ]
    found: dict[str, Plain] = {}
    for setting in settings:
        value = values.get(setting.name)
        if value is None:
            if setting.default is not None:
                found[setting.name] = setting.default
            elif setting.required:
                messages.append(f"the setting {setting.name} is missing; it is {_NAMES[setting.type]}")
        elif wrong := setting.wrong(value):
            messages.append(f"the setting {setting.name} {wrong}")
        else:
            found[setting.name] = _plain(value)
    if any_of and not any(all(name in found for name in names) for names in any_of):
        ways = " or ".join(", ".join(names) for names in any_of)
        messages.append(f"one of these groups of settings is needed: {ways}")
    if messages:
        raise ConfigInvalid([Problem(None, None, owner, message) for message in messages])
    return found


def as_text(value: Plain) -> str:
    """Return a value as a variable carries it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return ",".join(value) if isinstance(value, tuple) else str(value)


def as_arguments(prefix: str, value: Plain) -> list[str]:
    """Return the whole arguments a value makes; what it contains is never split or read again."""
    items = value if isinstance(value, tuple) else (as_text(value),)
    return [prefix + item for item in items]
