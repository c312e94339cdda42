"""Loading a catalog file: strict YAML into located nodes, and those into a Catalog.

Does not know what a valid entry is: the models judge that, and the assembly says in which line.
Only it and yamltext.py, for documents of other programs, import yaml.

Strict means: one document, no tags, no merge keys, no repeated keys, few aliases, bounded size and depth, and
no text that one YAML version reads as a number, a date or a truth value and another as text.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from catalog.assembly import assemble, assemble_profiles
from catalog.cache import CatalogCache
from catalog.catalog import Catalog
from catalog.errors import MAX_PROBLEMS, CatalogInvalid, CatalogUnreadable, Problem, place_name
from catalog.located import Mapping, Node, Scalar, Sequence, Unclear
from catalog.reading import read_plain
from catalog.spelling import quoted
from catalog.textfile import read_text

MAX_DEPTH = 32
"""Nesting; the deepest place of a valid catalog is 5."""
MAX_NODES = 100_000
"""Values and keys in one file: a bound on time and memory, several times what 1,000 entries need."""
MAX_MEMBERS = 2000
"""Length of one list or mapping inside of an entry or profile; the longest in use, a tool list, has 60."""
MAX_ALIASES = 32
"""Uses of anchors in one file: enough to share a limits block, too few to build a bomb."""
MAX_ANCHORED_NODES = 200
"""Size of one anchored value, for the same reason."""

N_OUTER_LEVELS = 2
"""The document and its sections: these may have as many members as a file has room for."""

SECTIONS = ("servers", "profiles", "publishers", "models")

SHIPPED_NAME = "catalog.yaml"


def find_shipped_catalog() -> Path:
    """Return where the shipped catalog is: inside the installed package, or beside it in a checkout.

    Raises:
        CatalogUnreadable: it is in neither place.
    """
    package = Path(__file__).resolve().parent
    for folder in (package, package.parent):
        path = folder / SHIPPED_NAME
        if path.is_file():
            return path
    message = "the shipped catalog is missing; install Lockgate again"
    raise CatalogUnreadable([Problem(package / SHIPPED_NAME, None, None, message)])


def load_catalog(path: Path, cache: Path | None = None) -> Catalog:
    """Read and check a catalog file.

    Args:
        path: the file.
        cache: a folder for checked catalogs; a file that was found valid once is then not parsed again.

    Raises:
        CatalogUnreadable: the file cannot be read.
        CatalogInvalid: it breaks rules; all problems found are in .problems.
    """
    text = read_text(path)
    kept = CatalogCache(cache) if cache is not None else None
    if kept is not None and (catalog := kept.load(path, text)) is not None:
        return catalog
    catalog = parse_catalog(path, text)
    if kept is not None:
        kept.save(text, catalog)
    return catalog


def parse_catalog(path: Path, text: str) -> Catalog:
    """Check the text of a catalog file; the path is for messages.

    Raises:
        CatalogInvalid: it breaks rules; all problems found are in .problems.
    """
    return assemble(path, *compose(path, text))


def compose(path: Path, text: str) -> tuple[Node, list[Problem]]:
    """Return the one document in the text, and what is wrong with how it is written.

    Raises:
        CatalogInvalid: it is no YAML, or passes a limit.
    """
    composer = _Composer(path)
    return composer.compose(text), composer.problems


def load_profiles(path: Path, base: Catalog) -> Catalog:
    """Return the catalog with the profiles of another file beside its own: a document without servers.

    Raises:
        CatalogUnreadable: the file cannot be read.
        CatalogInvalid: it breaks rules, or has a profile that the catalog has already.
    """
    return parse_profiles(path, read_text(path), base)


def parse_profiles(path: Path, text: str, base: Catalog) -> Catalog:
    """The same for the text of such a file; the path is for messages.

    Raises:
        CatalogInvalid: as `load_profiles`.
    """
    composer = _Composer(path)
    root = composer.compose(text)
    return assemble_profiles(path, root, composer.problems, base)


@dataclass(slots=True)
class _Frame:
    """A sequence or mapping whose end has not been read yet."""

    node: Sequence | Mapping
    anchor: str | None
    first_node: int
    """How many nodes had been read when it began."""
    key: str | None = None
    """The last key read."""
    key_line: int = 0
    has_value: bool = True
    """Whether that key's value has been read, so that what comes next is a key."""

    def expects_key(self) -> bool:
        return isinstance(self.node, Mapping) and self.has_value


class _Composer:
    """Builds located nodes from the parser's events, without recursion; stops at the first limit passed."""

    def __init__(self, path: Path) -> None:
        self.problems: list[Problem] = []
        self._path = path
        self._root: Node | None = None
        self._frames: list[_Frame] = []
        self._anchors: dict[str, tuple[Node, int]] = {}
        self._open_anchors = 0
        self._n_nodes = 0
        self._n_aliases = 0

    def compose(self, text: str) -> Node:
        """Return the root of the one document in the text."""
        n_documents = 0
        for event in self._events(text):
            line = event.start_mark.line + 1 if event.start_mark is not None else 1
            match event:
                case yaml.ScalarEvent():
                    self._scalar(event, line)
                case yaml.MappingStartEvent():
                    self._open(Mapping(line, {}), event)
                case yaml.SequenceStartEvent():
                    self._open(Sequence(line, []), event)
                case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                    self._close()
                case yaml.AliasEvent():
                    self._alias(event, line)
                case yaml.DocumentStartEvent():
                    n_documents += 1
                    if n_documents > 1:
                        raise self._stop(line, "begins a second document; a catalog is one document, remove the ---")
                    if event.tags:
                        self._report(line, "has a %TAG directive; a catalog has no tags, remove it")
                case _:
                    pass
        if self._root is None:
            raise self._stop(1, "has no content; begin with version: 1 and servers:")
        return self._root

    def _events(self, text: str) -> Iterator[yaml.Event]:
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        try:
            yield from yaml.parse(text, Loader=loader)
        except yaml.MarkedYAMLError as exc:
            mark = exc.problem_mark if exc.problem_mark is not None else exc.context_mark
            what = ", ".join(part for part in (exc.context, exc.problem) if part)
            raise self._stop(mark.line + 1 if mark else 1, f"is no YAML: {what}; check indentation and quotes") from exc
        except yaml.YAMLError as exc:
            raise self._stop(1, "is no YAML; check it with a YAML editor") from exc

    def _where(self) -> str | None:
        """The entry being read, as problems name it."""
        if len(self._frames) < N_OUTER_LEVELS:
            return None
        section, name = self._frames[0].key, self._frames[1].key
        if section not in SECTIONS or name is None:
            return None
        return place_name(section, name)

    def _report(self, line: int, message: str) -> None:
        self.problems.append(Problem(self._path, line, self._where(), message))
        if len(self.problems) >= MAX_PROBLEMS:
            raise self._stop(line, "has too many problems to go on; repair these first")

    def _stop(self, line: int, message: str) -> CatalogInvalid:
        return CatalogInvalid([*self.problems, Problem(self._path, line, self._where(), message)])

    def _count(self, line: int, n: int = 1) -> None:
        self._n_nodes += n
        if self._n_nodes > MAX_NODES:
            raise self._stop(line, f"has more than {MAX_NODES} values; split it into several catalogs")

    def _scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        self._count(line)
        text: str = event.value
        is_plain = not event.style and event.tag is None  # "" from the C parser, None from the other
        frame = self._frames[-1] if self._frames else None
        is_key = frame is not None and frame.expects_key()
        if is_key:
            self._key(text, line, is_plain)
        self._check_tag(event.tag, line)
        if not text.replace("\n", "").isprintable():
            hidden = next(c for c in text if c != "\n" and not c.isprintable())
            self._report(line, f"has the invisible character U+{ord(hidden):04X}; remove it")
        if is_key:
            if event.anchor is not None:
                self._report(line, "puts an anchor on a key; remove it")
            return
        node = Scalar(line, text, read_plain(text) if is_plain else text)
        if event.anchor is not None:
            self._name(event.anchor, node, 1, line)
        self._attach(node, line)

    def _key(self, text: str, line: int, is_plain: bool) -> None:
        frame = self._frames[-1]
        frame.key, frame.key_line, frame.has_value = text, line, False
        if is_plain:
            if text == "<<":
                self._report(line, "uses the merge key <<; write the keys out")
            elif not isinstance(value := read_plain(text), str):
                reading = value.reading if isinstance(value, Unclear) else "number or truth value"
                self._report(line, f"the key {quoted(text)} reads as a {reading}; put it in quotes")
        if isinstance(frame.node, Mapping) and text in frame.node.members:
            first = frame.node.members[text][0]
            message = f"the key {quoted(text)} is here twice, first in line {first}; remove one of them"
            self._report(line, message)

    def _open(self, node: Sequence | Mapping, event: yaml.CollectionStartEvent) -> None:
        line = node.line
        self._count(line)
        if len(self._frames) >= MAX_DEPTH:
            raise self._stop(line, f"is nested more than {MAX_DEPTH} deep; a catalog needs 5 levels")
        self._check_tag(event.tag, line)
        if self._frames and self._frames[-1].expects_key():
            raise self._stop(line, "uses a list or mapping as a key; a key is text")
        if event.anchor is not None:
            self._open_anchors += 1
        self._frames.append(_Frame(node, event.anchor, self._n_nodes))

    def _close(self) -> None:
        frame = self._frames.pop()
        if frame.anchor is not None:
            self._open_anchors -= 1
            self._name(frame.anchor, frame.node, self._n_nodes - frame.first_node + 1, frame.node.line)
        self._attach(frame.node, frame.node.line)

    def _alias(self, event: yaml.AliasEvent, line: int) -> None:
        name = str(event.anchor)
        self._n_aliases += 1
        if self._n_aliases > MAX_ALIASES:
            raise self._stop(line, f"uses more than {MAX_ALIASES} aliases; write the values out")
        if self._open_anchors:
            raise self._stop(line, f"uses the alias *{name} inside of an anchored value; write the value out")
        if name not in self._anchors:
            raise self._stop(line, f"uses the alias *{name}, which has no anchor before it; write the value out")
        node, size = self._anchors[name]
        self._count(line, size)
        if self._frames and self._frames[-1].expects_key():
            raise self._stop(line, f"uses the alias *{name} as a key; write the key out")
        self._attach(node, line)

    def _name(self, anchor: str, node: Node, size: int, line: int) -> None:
        if size > MAX_ANCHORED_NODES:
            raise self._stop(line, f"anchors more than {MAX_ANCHORED_NODES} values as &{anchor}; write them out")
        if anchor in self._anchors:
            self._report(line, f"uses the anchor &{anchor} twice; give each its own name")
        self._anchors[anchor] = (node, size)

    def _attach(self, node: Node, line: int) -> None:
        if not self._frames:
            self._root = node
            return
        frame = self._frames[-1]
        n_members = len(frame.node.items if isinstance(frame.node, Sequence) else frame.node.members)
        if n_members >= MAX_MEMBERS and len(self._frames) > N_OUTER_LEVELS:
            raise self._stop(line, f"has more than {MAX_MEMBERS} values in one place; remove some")
        if isinstance(frame.node, Sequence):
            frame.node.items.append(node)
        elif frame.key is not None:
            frame.node.members.setdefault(frame.key, (frame.key_line, node))
            frame.has_value = True

    def _check_tag(self, tag: str | None, line: int) -> None:
        if tag is not None:
            self._report(line, f"has the tag {quoted(tag)}; a catalog has no tags, remove it")
