"""Guessing which known name somebody meant, for error messages.

Does not know what the names stand for.
"""

import difflib
from collections.abc import Collection

LONGEST_GUESS = 64
"""Characters; comparing longer names costs time and a typo in them is unlikely to be the cause."""


_LOOK_ALIKE = str.maketrans({"0": "o", "1": "l", "i": "l", "_": "-"})


def skeleton(name: str) -> str:
    """Return what a name looks like at a glance: two ASCII names with the same skeleton can be taken for each other."""
    return name.casefold().translate(_LOOK_ALIKE).replace("rn", "m").replace("vv", "w")


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return ' (did you mean "X"?)' for the closest known name, or an empty string."""
    if len(name) > LONGEST_GUESS:
        return ""
    folded = {candidate.casefold().replace("-", "_"): candidate for candidate in known}
    matches = difflib.get_close_matches(name.casefold().replace("-", "_"), folded, n=1)
    return f' (did you mean "{folded[matches[0]]}"?)' if matches else ""


def quoted(text: str) -> str:
    """Return the text in double quotes, cut to a readable length, with invisible characters escaped."""
    shown = text if len(text) <= LONGEST_GUESS else text[: LONGEST_GUESS - 3] + "..."
    return '"' + "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shown) + '"'
