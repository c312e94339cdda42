"""HTML and SVG that a client would show: what in it runs, loads or sends where its server did not say it would.

A page of an app (MCP Apps, `text/html;profile=mcp-app`) may hold scripts of its own: its client runs it in a sandbox.
It may load from and speak to the hosts its `_meta.ui.csp` lists and no others. A picture runs nothing."""

import re
from collections.abc import Collection, Iterator
from html.parser import HTMLParser
from typing import Any, Final
from urllib.parse import urlsplit

_LOADS: Final = {
    "script": "src", "img": "src", "link": "href", "audio": "src", "video": "src", "source": "src", "track": "src",
    "embed": "src", "object": "data", "input": "src", "image": "href", "use": "href", "feimage": "href",
}  # fmt: skip
_SENDS: Final = {"form": "action", "button": "formaction"}
_SCRIPT_URL: Final = re.compile(
    r"(?i)[\x00-\x20]*(?:java|vb)script[\x00-\x20]*:|[\x00-\x20]*data:(?:text/html|image/svg)"
)
_CSS_URL: Final = re.compile(r"(?i)(?:url\(|@import)\s*[\"']?\s*((?:https?:)?//[^\s\"')]+)")
_BLANKS: Final = re.compile(r"[\t\n\r]")


def media(mime: object) -> str:
    """ "html", "svg", or "" for what is neither, by its media type."""
    plain = str(mime).split(";")[0].strip().lower()
    if plain in ("text/html", "application/xhtml+xml"):
        return "html"
    return "svg" if plain in ("image/svg+xml", "image/svg") else ""


def hosts(meta: Any) -> frozenset[str]:
    """The hosts that the `_meta` of an app resource lists, `*.` included, in lower case."""
    ui = meta.get("ui") if isinstance(meta, dict) else None
    csp = ui.get("csp") if isinstance(ui, dict) else None
    if not isinstance(csp, dict):
        return frozenset()
    lists = [csp.get(name) for name in ("connectDomains", "resourceDomains", "frameDomains", "baseUriDomains")]
    return frozenset(_host(str(one)) for some in lists if isinstance(some, list) for one in some)


def inspect(text: str, kind: str, allowed: Collection[str] = ()) -> list[str]:
    """What is to be looked at, by kind; `kind` is what `media` said, `allowed` what `hosts` did."""
    reader = _Reader(kind, allowed)
    try:
        reader.feed(text)
        reader.close()
    except (AssertionError, ValueError, RecursionError):
        reader.found.append("markup that cannot be read")
    return list(dict.fromkeys(reader.found))


class _Reader(HTMLParser):
    def __init__(self, kind: str, allowed: Collection[str]) -> None:
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._svg = 1 if kind == "svg" else 0
        self._picture = kind == "svg"
        self._allowed = allowed
        self._style = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        tag = tag.rpartition(":")[2]
        if tag == "svg":
            self._svg += 1
        self.found += self._of(tag, {name: value or "" for name, value in attrs})
        self._style = tag == "style"

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self._style = False

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        if self._style:
            self.found += self._css(data)

    def handle_decl(self, decl: str) -> None:
        if "entity" in decl.lower():
            self.found.append("entities of its own")

    def unknown_decl(self, data: str) -> None:
        if "entity" in data.lower():
            self.found.append("entities of its own")

    def _of(self, tag: str, attrs: dict[str, str]) -> Iterator[str]:
        if tag == "script" and self._picture:
            yield "script in a picture"
        if tag == "foreignobject" and self._picture:
            yield "foreign content in a picture"
        if tag in ("iframe", "frame", "object", "embed", "applet", "portal"):
            yield f"{tag} element"
        if tag == "base":
            yield "base element"
        if tag == "meta" and attrs.get("http-equiv", "").strip().lower() == "refresh":
            yield "redirect"
        for name, value in attrs.items():
            plain = name.rpartition(":")[2]
            if self._picture and plain.startswith("on"):
                yield "event handler in a picture"
            if _SCRIPT_URL.match(_BLANKS.sub("", value)) and plain in (
                "href",
                "src",
                "action",
                "formaction",
                "data",
                "to",
                "values",
                "from",
            ):
                yield "script in an address"
            if plain == "srcdoc":
                yield "page in an attribute"
            if plain == "style":
                yield from self._css(value)
            if plain == "srcset" and any(
                self._is_foreign(one.strip().split(" ")[0]) for one in value.split(",") if one.strip()
            ):
                yield "loads from an unlisted host"
            if plain == "ping" or (_SENDS.get(tag) == plain and self._is_foreign(value)):
                yield "sends to an unlisted host"
            elif _LOADS.get(tag) == plain and self._is_foreign(value):
                yield "loads from an unlisted host"

    def _css(self, text: str) -> Iterator[str]:
        if any(self._is_foreign(found[1]) for found in _CSS_URL.finditer(text)):
            yield "loads from an unlisted host"

    def _is_foreign(self, address: str) -> bool:
        address = _BLANKS.sub("", address).strip()
        if not re.match(r"(?i)(?:https?:|wss?:)?[/\\]{2}", address):
            return False
        host = _host(address.replace("\\", "/"))
        return not any(host == one or (one.startswith("*.") and host.endswith(one[1:])) for one in self._allowed)


def _host(address: str) -> str:
    try:
        return (urlsplit(address if "//" in address else f"//{address}").hostname or "").lower()
    except ValueError:
        return ""
