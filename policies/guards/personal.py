"""Personal data that has a form of its own: addresses of mail, telephone numbers, cards, bank accounts and some
national numbers. Names and places have none, and are not found.

Where a number has a check digit it is checked, so that other numbers are left alone."""

import re
from collections.abc import Iterator
from typing import Final

from policies.guards.credentials import Pattern, Patterns

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


def luhn(number: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    digits = [int(c) for c in number if c.isdigit()]
    total = sum(digits[-1::-2]) + sum(sum(divmod(2 * d, 10)) for d in digits[-2::-2])
    return total % 10 == 0 and len(set(digits)) > 1


def _is_card(number: str) -> bool:
    digits = re.sub(r"\D", "", number)
    known = re.match(
        r"4(?:.{12}|.{15}|.{18})$|5[1-5].{14}$|2[2-7].{14}$|3[47].{13}$|3[0689].{12}$|6(?:011|5|4[4-9]).{12,13}$",
        digits,
    )
    return known is not None and luhn(digits)


def _is_iban(text: str) -> bool:
    """ISO 13616: the number, its first four characters moved to its end, is 1 modulo 97."""
    plain = text.replace(" ", "")
    if not 15 <= len(plain) <= 34 or not (plain[:2].isascii() and plain[:2].isalpha() and plain[:2].isupper()):
        return False
    return int("".join(str(int(c, 36)) for c in plain[4:] + plain[:4])) % 97 == 1


def _is_phone(text: str) -> bool:
    """Digits as many as ITU-T E.164 allows, and none that count on."""
    digits = re.sub(r"\D", "", text)
    return 8 <= len(digits) <= 15 and len(set(digits)) > 1 and not text.rstrip().endswith(("-", "."))


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
_IBAN: Final = r"[0-9]{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)"
_ALL: Final = (
    Pattern(
        "telephone number", ("+",), re.compile(r"\+[1-9](?:[ ().-]{0,2}[0-9]){7,14}(?!\w)"), _is_phone, before="+_="
    ),
    Pattern(
        "telephone number", ("(",), re.compile(r"\([2-9][0-9]{2}\)[ -]?[2-9][0-9]{2}[ .-][0-9]{4}(?!\w)"), before="(_"
    ),
    Pattern("payment card", (), re.compile(_CARD), _is_card, before="._-"),
    Pattern("bank account", (), re.compile(_IBAN), _is_iban, before="_", behind=2),
    Pattern(
        "social security number", (), re.compile(r"[0-8][0-9]{2}-[0-9]{2}-[0-9]{4}(?![\w-])"), _is_social, before="_-"
    ),
)  # fmt: skip
PATTERNS: Final = Patterns(_ALL, re.compile(r"[0-9]{2}[0-9A-Z -]{8,60}"))
