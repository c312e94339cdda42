"""What unquoted text in a catalog stands for: text, a number, a truth value, or nothing that is clear.

Does not know which field it is for. YAML 1.1 and 1.2 disagree on much of this; where they do, the answer is
Unclear, which no field accepts. 2026.10 is a number here as it is there, so a text field refuses it and
nobody's final zero is lost.
"""

import re

from catalog.located import Unclear

_FIRST = frozenset("+-.0123456789~=nNyYtTfFoO")
_WHOLE = re.compile(r"-?(?:0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"-?(?:0|[1-9][0-9]{0,17})\.[0-9]{1,17}")
_NOTHING = frozenset(("", "~", "null", "Null", "NULL"))
_TRUTH = re.compile(r"yes|no|true|false|on|off|y|n", re.IGNORECASE)
# All that YAML 1.1 or 1.2 could take for a number: underscores, exponents, 0x, 0o, 0b, 1:30, .inf, .nan.
_NUMBER = re.compile(
    r"[-+]?(?:[0-9][0-9_]*(?:\.[0-9_]*)?|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?"
    r"|[-+]?0[xX][0-9a-fA-F_]+|[-+]?0[oO][0-7_]+|[-+]?0[bB][01_]+"
    r"|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?|[-+]?\.inf|\.nan",
    re.IGNORECASE,
)
_DATE = re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt ].*)?")


def read_plain(text: str) -> str | int | float | bool | Unclear:
    """Return what unquoted text stands for; Unclear where YAML versions or readers would disagree."""
    if text and text[0] not in _FIRST:
        return text
    if text in _NOTHING:
        return Unclear("nothing")
    if text in ("true", "false"):
        return text == "true"
    if _WHOLE.fullmatch(text):
        return int(text)
    if _DECIMAL.fullmatch(text):
        return float(text)
    if _TRUTH.fullmatch(text):
        return Unclear("truth value")
    if _NUMBER.fullmatch(text):
        return Unclear("number")
    if _DATE.fullmatch(text):
        return Unclear("date")
    if text == "=":
        return Unclear("special value")
    return text
