"""Personal data that has a form of its own: addresses of mail, telephone numbers, cards, bank accounts and some
national numbers. Names and places have none, and are not found.

Where a number has a check digit it is checked, so that other numbers are left alone."""

import re
from collections.abc import Iterator
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Final

from ahocorasick_rs import BytesAhoCorasick, Implementation

from policies.guards.credentials import Pattern

MAX_LOCAL: Final = 64
MAX_DOMAIN: Final = 255
"""Octets of the two parts of a mail address (RFC 5321, section 4.5.3.1)."""

_MAIL: Final = re.compile(
    r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]+@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,24}"
)
_NOBODY: Final = re.compile(
    r"@(?:[\w-]+\.)*(?:example(?:\.(?:com|org|net))?|test|invalid|localhost)$"
    r"|^(?:no-?reply|git|noreply)@|\.(?:png|jpe?g|gif|svg|js|css)$",
    re.IGNORECASE,
)
"""Addresses of nobody: names kept free for documents (RFC 2606), of programs, and names of picture files."""


_ISSUED: Final = re.compile(
    r"4(?:.{12}|.{15}|.{18})$|5[1-5].{14}$|2[2-7].{14}$|3[47].{13}$|3[0689].{12}$|6(?:011|5|4[4-9]).{12,13}$"
)
"""Lengths and first digits of the issuers of payment cards."""


_DOUBLED: Final = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
"""The sum of the digits of twice each digit."""


def luhn(number: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    each = [int(c) for c in number if c.isdigit()]
    total = sum(each[-1::-2]) + sum(map(_DOUBLED.__getitem__, each[-2::-2]))
    return total % 10 == 0 and len(set(each)) > 1


def _is_card(number: str) -> bool:
    plain = number.replace(" ", "").replace("-", "")
    return _ISSUED.match(plain) is not None and luhn(plain)


def _is_iban(text: str) -> bool:
    """ISO 13616: the number, its first four characters moved to its end, is 1 modulo 97."""
    plain = text.replace(" ", "")
    if not 15 <= len(plain) <= 34 or not (plain[:2].isascii() and plain[:2].isalpha() and plain[:2].isupper()):
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _is_phone(text: str) -> bool:
    """Digits as many as ITU-T E.164 allows, and none that count on."""
    plain = re.sub(r"\D", "", text)
    return 8 <= len(plain) <= 15 and len(set(plain)) > 1 and not text.rstrip().endswith(("-", "."))


def _is_social(text: str) -> bool:
    """Of the United States; parts of zeros only and area 666 were never given out."""
    area, group, serial = text.split("-")
    return area not in ("000", "666") and group != "00" and serial != "0000"


def mails(text: str) -> Iterator[tuple[int, int]]:
    """Where mail addresses are."""
    at, end = text.find("@"), 0
    while at >= 0:
        start = max(end, at - MAX_LOCAL)
        for found in _MAIL.finditer(text, start, at + MAX_DOMAIN):
            if found.start() < at < found.end():
                end = found.end()
                if not _NOBODY.search(found[0]):
                    yield found.span()
                break
        at = text.find("@", max(at + 1, end))


_CARD: Final = (
    r"[2-6][0-9]{3}(?:[0-9]{9,15}|(?P<gap>[ -])[0-9]{4}(?P=gap)[0-9]{4}(?P=gap)[0-9]{1,7}|[ -][0-9]{6}[ -][0-9]{5})"
    r"(?![\w-]|\.[0-9])"
)
_IBAN: Final = r"[A-Z]{2}[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)"
_SHAPE: Final = bytes(
    ord("0") if chr(byte) in digits
    else ord("A") if chr(byte) in ascii_uppercase
    else ord("a") if chr(byte) in ascii_lowercase + "_"
    else ord("-") if chr(byte) in " -"
    else byte if chr(byte) in "(+)"
    else ord(".")
    for byte in range(256)
)  # fmt: skip
"""Each byte to one for all of its kind."""
_ALL: Final = (
    Pattern(
        "telephone number", ("+0",), re.compile(r"\+[1-9](?:[ ().-]{0,2}[0-9]){7,14}(?!\w)"), _is_phone, before="+_="
    ),
    Pattern(
        "telephone number", ("(000)",), re.compile(r"\([2-9][0-9]{2}\)[ -]?[2-9][0-9]{2}[ .-][0-9]{4}(?!\w)"),
        before="(_",
    ),
    Pattern(
        "payment card", ("0000000000000", "0000-0000-0000", "0000-000000-00000"), re.compile(_CARD), _is_card,
        before="._-",
    ),
    Pattern("bank account", ("AA00",), re.compile(_IBAN), _is_iban, before="_"),
    Pattern(
        "social security number", ("000-00-0000",), re.compile(r"[0-8][0-9]{2}-[0-9]{2}-[0-9]{4}(?![\w-])"), _is_social,
        before="_-",
    ),
)  # fmt: skip
"""Their needles are shapes. Each must begin the text or follow what is no letter and no digit."""
_EDGES: Final = "-(+)."


class Numbers:
    """Numbers of people, by their shapes."""

    def __init__(self) -> None:
        self._shapes = [(shape, pattern) for pattern in _ALL for shape in pattern.needles]
        self._in_bytes = [shape.encode() for shape, _ in self._shapes]
        # Without the edge a long row of digits would be a place at each of them.
        self._edged = [pattern for _, pattern in self._shapes for _ in _EDGES]
        edged = [(edge + shape).encode() for shape, _ in self._shapes for edge in _EDGES]
        self._search = BytesAhoCorasick(edged, implementation=Implementation.DFA)

    def may_be_in(self, payload: bytes) -> bool:
        """Whether JSON could hold one that is not written with escapes."""
        shapes = payload.translate(_SHAPE)
        return any(shape in shapes for shape in self._in_bytes)

    def find(self, text: str) -> Iterator[tuple[int, int, str]]:
        """Each place: from, to, kind. Places may overlap."""
        shapes = b"." + text.encode("ascii", "replace").translate(_SHAPE)  # one byte for each character
        for number, start, _ in self._search.find_matches_as_indexes(shapes, overlapping=True):
            if (found := self._edged[number].at(text, start)) is not None:
                yield found


NUMBERS: Final = Numbers()
