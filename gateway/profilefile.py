"""A YAML file with profiles, changed one profile at a time: everything else in it stays as it is, letter by letter.

Knows text and YAML; not what a profile may say, which whoever writes the file has checked before."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Callable
from typing import Any, Final, NamedTuple

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode
from ruamel.yaml.util import load_yaml_guess_indent

from gateway.errors import SettingsError

EMPTY: Final = "# Profiles of your own; `lockgate profile` writes here, and so may you.\nversion: 1\n\nprofiles:\n"
SECTION: Final = "profiles"
WIDTH: Final = 4096
"""Lines are not folded: what was one line stays one."""
INDENT: Final = "  "

Edit = Callable[[CommentedMap], None]


class _Block(NamedTuple):
    """The lines of one profile, its key's included."""

    first: int
    end: int
    column: int


def changed(text: str, name: str, edit: Edit) -> str:
    """The text with one profile changed in place; its comments and the order of its keys stay.

    Raises:
        SettingsError: the text is no YAML, or has no such profile.
    """
    block = _block(text, name)
    if block is None:
        return _whole(text, name, edit)
    lines = text.splitlines(keepends=True)
    yaml, document = _loaded(textwrap.dedent("".join(lines[block.first : block.end])))
    edit(document[name])
    return _spliced(lines, block, textwrap.indent(_dumped(yaml, document), " " * block.column))


def added(text: str, name: str, members: CommentedMap) -> str:
    """The text with one more profile, after the others.

    Raises:
        SettingsError: the text is no YAML.
    """
    text = text if not text or text.endswith("\n") else f"{text}\n"
    section = _section(text)
    if (section is not None and section.flow_style and section.value) or _is_flow(text):
        return _whole(text, name, lambda profile: profile.update(members), new=True)
    yaml, _ = _loaded("")
    written = textwrap.indent(_dumped(yaml, CommentedMap({name: members})), INDENT)
    lines = text.splitlines(keepends=True)
    if section is None or not section.value:
        if section is not None:
            lines[section.start_mark.line] = f"{SECTION}:\n"
        at = next((number for number, line in enumerate(lines) if line.startswith(f"{SECTION}:")), None)
        if at is None:
            return f"{text}\n{SECTION}:\n{written}"
        return "".join([*lines[: at + 1], written, *lines[at + 1 :]])
    last = _block(text, section.value[-1][0].value)
    if last is None:
        return _whole(text, name, lambda profile: profile.update(members), new=True)
    written = textwrap.indent(textwrap.dedent(written), " " * last.column)
    return "".join([*lines[: last.end], "\n", written, *lines[last.end :]])


def removed(text: str, name: str) -> str:
    """The text without one profile.

    Raises:
        SettingsError: the text is no YAML, or has no such profile.
    """
    block = _block(text, name)
    if block is None:
        yaml, document = _loaded(text)
        del document[SECTION][name]
        return _dumped(yaml, document)
    lines = text.splitlines(keepends=True)
    end = block.end
    while end < len(lines) and not lines[end].strip() and (block.first == 0 or not lines[block.first - 1].strip()):
        end += 1  # one empty line between two profiles is enough
    left = "".join([*lines[: block.first], *lines[end:]])
    section = _section(left)
    if section is None:
        left = left.replace(f"\n{SECTION}:", f"\n{SECTION}: {{}}", 1)
    return left


def excerpt(text: str, name: str) -> str:
    """One profile as it stands in the text, without its indentation.

    Raises:
        SettingsError: the text is no YAML, or has no such profile.
    """
    block = _block(text, name)
    if block is not None:
        return textwrap.dedent("".join(text.splitlines(keepends=True)[block.first : block.end]))
    _, document = _loaded(text)
    yaml, _ = _loaded("")
    return _dumped(yaml, CommentedMap({name: document[SECTION][name]}))


def replaced(text: str, name: str, written: str) -> str:
    """The text with one profile written anew; `written` is as `excerpt` gives it.

    Raises:
        SettingsError: it is not that one profile.
    """
    _, document = _loaded(written)
    if list(document) != [name]:
        raise SettingsError(f"what was edited is no longer the profile {name} alone; nothing is changed")
    block = _block(text, name)
    if block is None:

        def put(profile: CommentedMap) -> None:
            profile.clear()
            profile.update(document[name])

        return _whole(text, name, put)
    written = written if written.endswith("\n") else f"{written}\n"
    return _spliced(text.splitlines(keepends=True), block, textwrap.indent(written, " " * block.column))


def sequence(items: list[str]) -> CommentedSeq:
    """A list as people write it: on one line."""
    found = CommentedSeq(items)
    found.fa.set_flow_style()
    return found


# -- text ----------------------------------------------------------------------------------------


def _is_flow(text: str) -> bool:
    """Whether the document is written as JSON is."""
    return text.lstrip().startswith("{")


def _section(text: str) -> MappingNode | None:
    """The node of the profiles; None if there is none that is a mapping."""
    try:
        root = YAML().compose(text)
    except YAMLError as exc:
        raise SettingsError(f"the file is no YAML: {' '.join(str(exc).split())}") from exc
    for key, value in root.value if isinstance(root, MappingNode) and not root.flow_style else ():
        if key.value == SECTION and isinstance(value, MappingNode):
            return value
    return None


def _block(text: str, name: str) -> _Block | None:
    """Where a profile stands on lines of its own; None if it is written in another way, or is not there."""
    section = _section(text)
    if section is None or section.flow_style:
        return None
    for key, value in section.value:
        if key.value == name:
            lines = text.splitlines(keepends=True)
            first, column, end = key.start_mark.line, key.start_mark.column, value.end_mark.line
            end += 1 if value.end_mark.column > column and end < len(lines) else 0
            while end > first + 1 and _is_between(lines[end - 1], column):
                end -= 1
            return _Block(first, end, column)
    return None


def _is_between(line: str, column: int) -> bool:
    """Whether a line behind a profile is not part of it: empty, or a comment that stands as far left as its key."""
    text = line.lstrip()
    return not text or (text.startswith("#") and len(line) - len(text) <= column)


def _spliced(lines: list[str], block: _Block, written: str) -> str:
    return "".join([*lines[: block.first], written, *lines[block.end :]])


def _whole(text: str, name: str, edit: Edit, *, new: bool = False) -> str:
    """The same by writing the whole file anew, for a file that is not in block style, such as JSON."""
    yaml, document = _loaded(text)
    profiles = document.setdefault(SECTION, CommentedMap())
    if new:
        profiles[name] = CommentedMap()
    if name not in profiles:
        raise SettingsError(f"the file has no profile {name}")
    edit(profiles[name])
    return _dumped(yaml, document)


def _loaded(text: str) -> tuple[YAML, Any]:
    """The document with its comments, and a writer that indents as it does."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = WIDTH
    try:
        _, indent, offset = load_yaml_guess_indent(text)
        yaml.indent(mapping=2, sequence=indent or 4, offset=offset if offset is not None else 2)
        document = yaml.load(text)
    except YAMLError as exc:
        raise SettingsError(f"the text is no YAML: {' '.join(str(exc).split())}") from exc
    return yaml, CommentedMap() if document is None else document


def _dumped(yaml: YAML, document: Any) -> str:
    stream = io.StringIO()
    yaml.dump(document, stream)
    return stream.getvalue()
