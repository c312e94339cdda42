"""YAML of and for other programs: read without tags and aliases, written plainly.

Does not know what is in it. The catalog's own files are read by the loader, which is stricter and keeps lines.
"""

from typing import Any, Final

import yaml

from catalog.reading import read_plain

MAX_NODES: Final = 500_000
MAX_DEPTH: Final = 64
WIDTH: Final = 120


def parse_plain(text: str) -> Any:
    """Return the one document in the text as lists, mappings and values.

    Raises:
        ValueError: no YAML, several documents, an alias (they could be a bomb), too large or too deep.
    """
    try:
        _check_size(text)
        return yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - it is a safe one
    except yaml.MarkedYAMLError as exc:
        mark = exc.problem_mark or exc.context_mark
        where = f" in line {mark.line + 1}" if mark else ""
        raise ValueError(f"is neither JSON nor YAML{where}: {exc.problem or exc.context}") from exc
    except (yaml.YAMLError, RecursionError) as exc:
        raise ValueError("is neither JSON nor YAML") from exc


def _check_size(text: str) -> None:
    """Bounds before anything is built."""
    depth = 0
    for n_nodes, event in enumerate(yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))):
        match event:
            case yaml.AliasEvent():
                raise ValueError(f"uses the alias *{event.anchor}; write the value out")
            case yaml.CollectionStartEvent():
                depth += 1
            case yaml.CollectionEndEvent():
                depth -= 1
        if depth > MAX_DEPTH or n_nodes > MAX_NODES:
            raise ValueError(f"has more than {MAX_NODES} values, or is nested deeper than {MAX_DEPTH}")


def dump(value: object) -> str:
    """Return a value as YAML: members in their order, no anchors."""
    return yaml.dump(value, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=WIDTH)


class _Plain(yaml.SafeDumper):
    """Quotes every text that some version of YAML reads as something else."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, text: str) -> yaml.Node:
        style = None if isinstance(read_plain(text), str) else '"'
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Plain.add_representer(str, _Plain.represent_text)
