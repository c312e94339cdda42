"""Which few of many tools fit a task: BM25 over their names, descriptions and parameters.

Knows nothing of models; it compares words, the shapes of values (a path, a number) and a few synonyms."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

DEFAULT_KEPT: Final = 6  # tools a small model chooses among reliably
_K1: Final = 1.2  # BM25: how soon more of a word stops counting
_B: Final = 0.5  # BM25: how much a long text weighs against each word
_NAME_WEIGHT: Final = 3
_MISSING: Final = 0.5  # for each kind of value a tool cannot do without and the task does not name
_MATCHED: Final = 1.3  # for each that it does name
_UNUSED: Final = 0.7  # for each kind of value the task names and the tool does not take
_FITTING: Final = 1.0  # the least score of a tool that a task is about; small talk has none
_MAX_DESCRIPTION: Final = 160  # characters
_MAX_SCHEMA_DEPTH: Final = 12
_COSTLY: Final = frozenset({"$schema", "title", "additionalProperties", "default", "examples"})
_WEAK: Final = {"show", "display", "open", "make", "look"}  # verbs of many meanings: only their group counts
_NAMED_SHAPES: Final = {"path": "#path", "file": "#path", "directory": "#path", "time": "#time", "url": "#url"}
_MAX_WORDS: Final = 400  # of one tool's text or one task

_STOP_WORDS: Final = frozenset({
    "a", "an", "and", "are", "as", "at", "be", "by", "can", "could", "do", "does", "for", "from", "get", "give",
    "has", "have", "how", "i", "in", "into", "is", "it", "its", "me", "my", "now", "of", "on", "or", "please",
    "right", "tell", "that", "the", "their", "them", "then", "there", "these", "this", "to", "use", "using", "want",
    "was", "we", "what", "when", "where", "which", "who", "will", "with", "work", "works", "would", "you", "your",
})  # fmt: skip
_SYNONYMS: Final = (
    ("add", "sum", "plus", "total"),
    ("list", "show", "display"),
    ("directory", "folder", "dir"),
    ("create", "make", "new", "remember"),
    ("delete", "remove", "erase"),
    ("search", "find", "look"),
    ("read", "open", "view", "print", "content", "say"),
    ("write", "save", "store", "put"),
    ("move", "rename"),
    ("memory", "remember", "recall", "know", "knowledge"),
    ("log", "history", "recent", "last"),
    ("query", "select", "row", "sql"),
    ("database", "db", "sqlite"),
    ("time", "clock", "hour", "timezone", "date"),
    ("size", "large", "big", "metadata"),
    ("repeat", "echo"),
    ("fetch", "download", "url", "web", "page", "website"),
)
_GROUPS: Final = {
    word: [f"~{group[0]}" for group in _SYNONYMS if word in group] for group in _SYNONYMS for word in group
}
_QUOTED: Final = re.compile(r"(?<!\w)(['\"`])[^\n]{1,200}?\1(?!\w)")
_SHAPES: Final = (
    (
        re.compile(r"(?<![\w.])(?:~|\.{1,2})?(?:/[\w.-]+)+|\b\w+\.(?:txt|md|py|json|csv|log|html|yaml|toml)\b"),
        "path",
    ),
    (re.compile(r"\b\d{1,2}:\d{2}\b"), "time"),
    (re.compile(r"https?://\S+"), "url"),
    (re.compile(r"(?<![\w/.:-])-?\d+(?:\.\d+)?(?![\w/:-])"), "number"),
)


def narrow(task: str, tools: Sequence[Mapping[str, Any]], kept: int = DEFAULT_KEPT) -> list[Mapping[str, Any]]:
    """The `kept` tools (OpenAI function tools) that fit `task` best, best first; all of them if they are few."""
    if len(tools) <= kept:
        return list(tools)
    functions = [tool.get("function", tool) for tool in tools]
    words = _task_words(task)
    scores = _bm25(words, [_tool_words(function) for function in functions])
    scores = [score * _fit(words, function) for score, function in zip(scores, functions, strict=True)]
    # Where no word says anything, tools of many servers are better than many of one: servers take turns.
    turns = [_turn(functions, index) if not any(scores) else 0 for index in range(len(tools))]
    order = sorted(range(len(tools)), key=lambda index: (-scores[index], turns[index], index))
    return [tools[index] for index in order[:kept]]


def fits(task: str, tools: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the words of `task` point to one of the tools at all."""
    functions = [tool.get("function", tool) for tool in tools]
    words = _task_words(task)
    scores = _bm25(words, [_tool_words(function) for function in functions]) if functions else []
    return any(score * _fit(words, function) >= _FITTING for score, function in zip(scores, functions, strict=True))


def _fit(words: Counter[str], function: Mapping[str, Any]) -> float:
    """A factor for how the kinds of value a tool takes match those the task names."""
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    required = parameters.get("required") if isinstance(parameters, Mapping) else None
    taken = {
        str(name): _shapes_of(str(name), schema)
        for name, schema in (properties.items() if isinstance(properties, Mapping) else ())
    }
    factor = 1.0
    for name in required if isinstance(required, list) else ():
        for shape in taken.get(str(name), ()):
            factor *= _MATCHED if shape in words else _MISSING
    unused = {word for word in words if word[0] == "#"} - {shape for shapes in taken.values() for shape in shapes}
    return factor * _UNUSED ** len(unused)


def _shapes_of(name: str, schema: Any) -> list[str]:
    """The shapes of value a parameter takes, by its type and the words of its name."""
    shapes = [_NAMED_SHAPES[word] for word in _words(name) if word in _NAMED_SHAPES]
    if isinstance(schema, Mapping) and schema.get("type") in ("number", "integer"):
        shapes.append("#number")
    return shapes


def _turn(functions: Sequence[Mapping[str, Any]], index: int) -> int:
    """How many tools of the same server come before this one."""
    server = str(functions[index].get("name", "")).partition("__")[0]
    return sum(1 for function in functions[:index] if str(function.get("name", "")).partition("__")[0] == server)


def _bm25(query: Counter[str], documents: Sequence[Counter[str]]) -> list[float]:
    lengths = [document.total() for document in documents]
    mean_length = sum(lengths) / len(lengths) or 1.0
    scores = [0.0] * len(documents)
    for word, wanted in query.items():
        n_with = sum(1 for document in documents if word in document)
        rarity = math.log(1 + (len(documents) - n_with + 0.5) / (n_with + 0.5))
        # A synonym or a shape is weaker evidence than the word itself.
        weight = min(wanted, 2) * rarity * (0.6 if word[0] in "~#" else 1.0)
        for index, document in enumerate(documents):
            if count := document.get(word):
                norm = _K1 * (1 - _B + _B * lengths[index] / mean_length)
                scores[index] += weight * count * (_K1 + 1) / (count + norm)
    return scores


def _task_words(task: str) -> Counter[str]:
    shapes: list[str] = []
    for pattern, shape in _SHAPES:
        task, n_found = pattern.subn(" ", task)  # what a path is made of says nothing about the tool
        if n_found:
            shapes.append(f"#{shape}")
    return Counter(_words(_QUOTED.sub(" ", task)) + shapes)


def _tool_words(function: Mapping[str, Any]) -> Counter[str]:
    name = str(function.get("name", ""))
    words = Counter(_words(name) * _NAME_WEIGHT + _words(str(function.get("description") or "")))
    parameters = function.get("parameters")
    properties = parameters.get("properties") if isinstance(parameters, Mapping) else None
    for key, schema in properties.items() if isinstance(properties, Mapping) else ():
        words.update(_words(str(key)))
        if isinstance(schema, Mapping):
            words.update(_words(str(schema.get("description") or "")))
        words.update(_shapes_of(str(key), schema))
    return words


def _words(text: str) -> list[str]:
    """Lower-case stems without stop words, each followed by its groups of synonyms."""
    found: list[str] = []
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    for word in re.findall(r"[a-z]+|[0-9]+", spaced.lower())[:_MAX_WORDS]:
        if word in _STOP_WORDS or len(word) == 1:
            continue
        stem = _stem(word)
        if stem not in _WEAK:
            found.append(stem)
        found += _GROUPS.get(stem) or _GROUPS.get(word) or ()
    return found


def _stem(word: str) -> str:
    for suffix, rest in (("ies", "y"), ("ing", ""), ("ed", ""), ("es", "e"), ("s", "")):
        if word.endswith(suffix) and len(word) - len(suffix) >= 3 and not word.endswith("ss"):
            return word[: len(word) - len(suffix)] + rest
    return word


def compact(tool: Mapping[str, Any], task: str | None = None) -> dict[str, Any]:
    """`tool` with short descriptions and without schema keywords that only cost a small model tokens.

    With `task`, also without optional parameters it says nothing about: small models fill in whatever they see.
    """
    function = tool.get("function", tool)
    shown: dict[str, Any] = {"name": function["name"]}
    if description := function.get("description"):
        shown["description"] = _first_sentences(str(description), _MAX_DESCRIPTION)
    parameters = function.get("parameters")
    shown["parameters"] = _lean(parameters, 0) if isinstance(parameters, Mapping) else {"type": "object"}
    if task is not None and isinstance(shown["parameters"].get("properties"), dict):
        _drop_unmentioned(shown["parameters"], _task_words(task))
    return {"type": "function", "function": shown}


def _drop_unmentioned(parameters: dict[str, Any], words: Counter[str]) -> None:
    required = parameters.get("required")
    required = required if isinstance(required, list) else []
    parameters["properties"] = {
        name: schema
        for name, schema in parameters["properties"].items()
        if name in required or words.keys() & {*_words(str(name)), *_shapes_of(str(name), schema)}
    }


def _lean(schema: Any, depth: int) -> Any:
    if isinstance(schema, list):
        return [_lean(item, depth) for item in schema]
    if not isinstance(schema, Mapping) or depth > _MAX_SCHEMA_DEPTH:
        return schema
    options = [o for key in ("anyOf", "oneOf") for o in schema.get(key) or () if o != {"type": "null"}]
    if len(options) == 1 and isinstance(options[0], Mapping):
        schema = {**{key: value for key, value in schema.items() if key not in ("anyOf", "oneOf")}, **options[0]}
    lean: dict[str, Any] = {}
    for key, value in schema.items():
        if key == "properties" and isinstance(value, Mapping):
            lean[key] = {name: _lean(item, depth + 1) for name, item in value.items()}
        elif key == "description":
            lean[key] = _first_sentences(str(value), _MAX_DESCRIPTION)
        elif key not in _COSTLY:
            lean[key] = _lean(value, depth + 1)
    return lean


def _first_sentences(text: str, limit: int) -> str:
    text = " ".join(text.split())
    if len(text) <= limit:
        return text
    end = text.rfind(". ", 0, limit)
    return text[: end + 1] if end > 0 else f"{text[:limit].rpartition(' ')[0]} …"
