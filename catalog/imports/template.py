"""Docker's templates, `{{server.key|filter}}` and `${VARIABLE}`, taken apart; nothing is ever expanded.

Does not know entries: whoever asks decides what a template becomes.
"""

import re
from dataclasses import dataclass

_TEMPLATE = re.compile(r"\{\{([^{}]*)\}\}")
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}|\$([A-Za-z_][A-Za-z0-9_]*)")


@dataclass(frozen=True, slots=True)
class Template:
    """One text with at most one template in it: before, the key and its filters, after."""

    before: str
    key: str
    filters: tuple[str, ...]
    after: str

    @property
    def is_whole(self) -> bool:
        """Whether nothing stands around the template."""
        return not self.before and not self.after

    def has(self, filter: str) -> bool:
        return any(f.partition(":")[0] == filter for f in self.filters)

    def argument(self, filter: str) -> str | None:
        """What stands behind the colon of a filter: `or:default`, `mount_as:/path:ro`."""
        return next((f.partition(":")[2] for f in self.filters if f.startswith(filter + ":")), None)


def template_in(text: str, owner: str = "") -> Template | None:
    """The template of a text; None if it has none.

    The key is returned without the owner's name before it.

    Raises:
        ValueError: several templates in one text.
    """
    found = list(_TEMPLATE.finditer(text))
    if not found:
        return None
    if len(found) > 1:
        raise ValueError("holds several templates")
    match = found[0]
    key, *filters = (part.strip() for part in match.group(1).split("|"))
    prefix = f"{owner}."
    if owner and key.startswith(prefix):
        key = key[len(prefix) :]
    return Template(text[: match.start()], key, tuple(filters), text[match.end() :])


def variables_in(text: str) -> list[str]:
    """The names of the variables that a text mentions."""
    return [match.group(1) or match.group(2) for match in _VARIABLE.finditer(text)]


def split_variable(text: str) -> tuple[str, str] | None:
    """A text that is a prefix and one variable at its end, as in "Bearer ${TOKEN}"; else None."""
    found = list(_VARIABLE.finditer(text))
    if len(found) != 1 or found[0].end() != len(text):
        return None
    return text[: found[0].start()], found[0].group(1) or found[0].group(2)
