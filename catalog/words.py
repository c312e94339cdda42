"""Words of texts and names, and which of them mean the same to somebody who searches.

Does not know entries or ranking.
"""

import re
import unicodedata
from collections.abc import Iterator

_WORD = re.compile(r"[^\W_]+")
_HUMP = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")

STOPWORDS = frozenset(
    _WORD.findall(
        """a about all am an and any are as at be between by can could do does doing every for from get give has have
        how i if in into is it its keep let like many me much my need of on or other our over own please show so some
        tell than that the their them there these things this to turn up us use using want was we what when where which
        who why will with without would you your"""
    )
)
"""Words that say nothing about what is wanted."""

_SAME = (
    ("postgres", "postgresql", "pg"),
    ("kubernetes", "k8s", "kubectl"),
    ("mail", "email", "inbox"),
    ("picture", "image", "photo"),
    ("sound", "audio"),
    ("speech", "speak", "voice"),
    ("film", "movie", "video"),
    ("folder", "directory"),
    ("file", "document"),
    ("repo", "repository"),
    ("pr", "pull"),
    ("ticket", "issue"),
    ("bug", "error"),
    ("db", "database"),
    ("mysql", "mariadb"),
    ("js", "javascript", "node"),
    ("ts", "typescript"),
    ("py", "python"),
    ("csharp", "dotnet", "net"),
    ("website", "site", "webpage", "web"),
    ("url", "link", "page"),
    ("question", "answer", "ask"),
    ("crash", "fail", "diagnose", "debug"),
    ("restaurant", "place"),
    ("online", "web"),
    ("percent", "arithmetic", "calculate", "compute", "equation"),
    ("code", "program"),
    ("disk", "filesystem"),
    ("private", "privacy"),
    ("evaluate", "evaluation"),
    ("docs", "documentation"),
    ("cost", "price", "spend", "bill"),
    ("buy", "purchase", "shop"),
    ("chat", "message"),
    ("sms", "text"),
    ("phone", "call"),
    ("vm", "virtual"),
    ("vulnerability", "cve", "hole"),
    ("login", "signin"),
    ("job", "career"),
    ("todo", "task"),
    ("flight", "plane"),
    ("place", "location", "address"),
    ("direction", "route"),
    ("weather", "forecast"),
    ("translate", "translation"),
    ("summary", "summarise", "summarize"),
    ("analyse", "analyze"),
    ("catalogue", "catalog"),
    ("colour", "color"),
    ("screenshot", "snapshot"),
    ("scrape", "crawl", "extract"),
    ("paper", "article"),
    ("contact", "lead"),
    ("crypto", "cryptocurrency", "bitcoin"),
    ("stock", "share"),
    ("chart", "graph", "plot"),
    ("ai", "llm", "model"),
    ("deploy", "host"),
    ("sandbox", "isolated"),
    ("execute", "run"),
    ("find", "search"),
    ("delete", "remove"),
    ("terminal", "shell", "command"),
    ("meeting", "call"),
    ("transcript", "transcribe", "transcription"),
    ("metric", "monitoring"),
    ("log", "logging"),
    ("trace", "tracing"),
)
"""Groups of words of which one stands in for another, in the singular."""


def _groups() -> dict[str, tuple[str, ...]]:
    found: dict[str, list[str]] = {}
    for group in _SAME:
        for word in group:
            found.setdefault(word, []).extend(other for other in group if other != word)
    return {word: tuple(dict.fromkeys(others)) for word, others in found.items()}


SYNONYMS = _groups()


def words(text: str, *, humps: bool = False) -> Iterator[str]:
    """Yield the words of a text, folded; with humps also the parts of DynamoDB and getForecast."""
    for match in _WORD.finditer(unicodedata.normalize("NFKC", text)):
        word = match[0]
        yield singular(word.casefold())
        if humps and len(parts := _HUMP.findall(word)) > 1:
            yield from (singular(part.casefold()) for part in parts)


def singular(word: str) -> str:
    """Drop a plural s, so that files finds file; crude, but the same on both sides."""
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
