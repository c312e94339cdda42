"""The arguments of a call as policy reads them: typed, bounded, with paths and hosts in one form each.

Knows values and shapes; no policy and no tool. What cannot be put into one certain form raises `Unjudgeable`, so that a
rule which reads it denies, whichever way the rule was meant.
"""

from __future__ import annotations

import ipaddress
import math
import re
import unicodedata
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import idna

from policies.shapes import Kind, Shape

MAX_TEXT: Final = 16_384
"""Characters of a text that policy reads; a longer one cannot be judged."""
MAX_ITEMS: Final = 1000
MAX_LONG: Final = 2**63 - 1

Json = Any
"""A value in Cedar's JSON form."""


class Unjudgeable(ValueError):
    """A value that has no certain meaning for a rule."""


def typed(value: object, shape: Shape | None) -> Json:
    """A value in Cedar's JSON, of exactly the declared type; without one, of the type it has itself.

    Raises:
        Unjudgeable: of another type, out of range, or too large.
    """
    kind = shape.kind if shape is not None else _kind(value)
    if kind == "text" and isinstance(value, str):
        return _bounded(value)
    if kind == "truth" and isinstance(value, bool):
        return value
    if kind in ("whole", "number") and isinstance(value, int | float) and not isinstance(value, bool):
        return _whole(value) if kind == "whole" else _decimal(value)
    if kind == "set" and isinstance(value, list):
        if len(value) > MAX_ITEMS:
            raise Unjudgeable("too many items")
        of = shape.of if shape is not None else None
        items = [typed(item, of or Shape(_scalar_kind(item))) for item in value]
        if len({type(item) for item in items}) > 1:
            raise Unjudgeable("items of several types")
        return items
    if kind == "record" and isinstance(value, Mapping) and shape is not None:
        # What the schema does not name cannot be compared; whether it is there must not change the answer.
        return {name: typed(value[name], inner) for name, inner in shape.members.items() if value.get(name) is not None}
    raise Unjudgeable("another type than the tool declares")


def _kind(value: object) -> Kind:
    if isinstance(value, list):
        return "set"
    return _scalar_kind(value)


def _scalar_kind(value: object) -> Kind:
    match value:
        case bool():
            return "truth"
        case int():
            return "whole"
        case float():
            return "number"
        case str():
            return "text"
    raise Unjudgeable("no single value")


def _bounded(text: str) -> str:
    if len(text) > MAX_TEXT:
        raise Unjudgeable("too long")
    return text


def _whole(value: int | float) -> int:
    if isinstance(value, float) and not value.is_integer():
        raise Unjudgeable("no whole number")
    if not -MAX_LONG - 1 <= value <= MAX_LONG or (isinstance(value, float) and abs(value) > 2**53):
        raise Unjudgeable("out of range")
    return int(value)


def _decimal(value: int | float) -> Json:
    if not math.isfinite(value) or abs(value) > 9 * 10**14:
        raise Unjudgeable("out of range")
    exact = Decimal(str(value))
    rounded = exact.quantize(Decimal("0.0001"))
    if rounded != exact:
        raise Unjudgeable("more than four decimal places")
    return {"__extn": {"fn": "decimal", "arg": f"{rounded:f}"}}


# -- paths -------------------------------------------------------------------------------------

_DOUBTFUL_PATH: Final = re.compile(r"[\x00-\x1f\x7f\\]|%(?:2e|2f|5c|25|00)|^~|\$[\w({]|%\w+%", re.IGNORECASE)
"""Control characters, other separators, encoded dots and separators, and what a shell or server may expand."""
_DOTTED: Final = re.compile(r"(?:^|/)(?!\.{1,2}(?:/|$))[^/]*[. ](?:/|$)")
"""A part that ends in a dot or blank, which some systems take away."""


def path(value: object) -> str:
    """A path with `.`, `..` and repeated slashes resolved, without looking at any disk.

    Raises:
        Unjudgeable: not text, or readers could disagree on what it names.
    """
    if not isinstance(value, str):
        raise Unjudgeable("no text")
    text = _bounded(value)
    if re.match(r"(?i)file:", text):
        text = _file_url(text)
    if _DOUBTFUL_PATH.search(text) or _DOTTED.search(text):
        raise Unjudgeable("a path that can be read in several ways")
    if not text.isascii() and (
        unicodedata.normalize("NFKC", text).count("/") != text.count("/")
        or unicodedata.normalize("NFKC", text).count(".") != text.count(".")
        or any(unicodedata.category(c) in ("Cf", "Cc", "Zl", "Zp") for c in text)
        or any(c in "∕⁄⧸╱․‥…" for c in text)
    ):
        raise Unjudgeable("a path with look-alikes of separators, or with unseen characters")
    parts: list[str] = []
    absolute = text.startswith("/")
    for part in unicodedata.normalize("NFC", text).split("/"):
        if part in ("", "."):
            continue
        if part == ".." and parts and parts[-1] != "..":
            parts.pop()
        elif part != ".." or not absolute:
            parts.append(part)
    return ("/" if absolute else "") + "/".join(parts) or "."


def is_certain(resolved: str) -> bool:
    """Whether a resolved path means one place: a relative one depends on where its server runs."""
    return resolved.startswith("/")


def _file_url(text: str) -> str:
    try:
        parts = urlsplit(text)
    except ValueError as exc:
        raise Unjudgeable("no valid URL") from exc
    if parts.netloc.lower() not in ("", "localhost") or parts.query or parts.fragment or not parts.path.startswith("/"):
        raise Unjudgeable("a file URL with more than a path")
    return unquote(parts.path, errors="strict") if "%" in parts.path else parts.path


# -- hosts -------------------------------------------------------------------------------------

_AUTHORITY: Final = re.compile(r"(?P<host>\[[0-9A-Fa-f:.]+\]|[^\[\]:@/?#\\\s]+)(?::(?P<port>[0-9]{1,5})?)?")
_NUMBER: Final = re.compile(r"(?i)0x[0-9a-f]*|[0-9]+")


def host(value: object) -> str:
    """The host a URL, `host:port` or host names: lower case, IDNA in ASCII, addresses in their usual form.

    Raises:
        Unjudgeable: not text, no host in it, or readers could disagree on which.
    """
    if not isinstance(value, str):
        raise Unjudgeable("no text")
    text = _bounded(value)
    if re.search(r"[\x00-\x20\x7f\\]", text):
        raise Unjudgeable("a URL with blanks, control characters or backslashes")
    scheme, mark, rest = text.partition("://")
    if mark and not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        raise Unjudgeable("no valid URL")
    if not mark:
        rest = text.removeprefix("//")
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:(?![0-9]{1,5}(?:[/?#]|$))", rest):
            raise Unjudgeable("a URL without a host")
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    userinfo, at, place = authority.rpartition("@")
    if at and ("@" in userinfo or "%" in place):
        raise Unjudgeable("a URL whose host is in doubt")
    found = _AUTHORITY.fullmatch(place)
    if found is None:
        raise Unjudgeable("a URL without a clear host")
    return _host(found["host"])


def _host(name: str) -> str:
    if name.startswith("["):
        try:
            return _address(ipaddress.IPv6Address(name[1:-1]))
        except ValueError as exc:
            raise Unjudgeable("no valid address") from exc
    if "%" in name:
        name = unquote(name)
        if re.search(r"[\x00-\x20\x7f\\/?#@:%]", name):
            raise Unjudgeable("a host with hidden separators")
    try:
        bare = name.rstrip(".")
        ascii_name = bare if bare.isascii() else idna.encode(bare, uts46=True).decode()
    except (idna.IDNAError, UnicodeError) as exc:
        raise Unjudgeable("no valid host name") from exc
    ascii_name = ascii_name.lower()
    labels = ascii_name.split(".")
    if _NUMBER.fullmatch(labels[-1]):
        return _dotted(labels)
    if len(ascii_name) > 253 or not all(re.fullmatch(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?", x) for x in labels):
        raise Unjudgeable("no valid host name")
    return ascii_name


def _dotted(labels: list[str]) -> str:
    """An IPv4 address however it is written: with fewer parts, in octal or in hexadecimal."""
    if len(labels) > 4 or not all(_NUMBER.fullmatch(label) for label in labels):
        raise Unjudgeable("no valid address")
    values = []
    for label in labels:
        try:
            if label.lower().startswith("0x"):
                values.append(int(label[2:] or "0", 16))
            else:
                values.append(int(label, 8 if label.startswith("0") and len(label) > 1 else 10))
        except ValueError as exc:
            raise Unjudgeable("no valid address") from exc
    *first, last = values
    if any(value > 255 for value in first) or last >= 256 ** (5 - len(values)):
        raise Unjudgeable("no valid address")
    number = last + sum(value << (24 - 8 * place) for place, value in enumerate(first))
    return str(ipaddress.IPv4Address(number))


def _address(address: ipaddress.IPv6Address) -> str:
    return str(address.ipv4_mapped or address)


def address(value: object) -> Json | None:
    """The address a value names, if its host is one.

    Raises:
        Unjudgeable: as `host`.
    """
    name = host(value)
    try:
        return {"__extn": {"fn": "ip", "arg": str(ipaddress.ip_address(name))}}
    except ValueError:
        return None
