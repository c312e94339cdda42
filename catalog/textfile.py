"""Reading a text file that a person wrote: bounded, UTF-8, Unix line ends, no control characters.

Does not know what the text means.
"""

import re
import stat
from pathlib import Path

from catalog.errors import CatalogInvalid, CatalogUnreadable, Problem

MAX_BYTES = 4 * 1024 * 1024
"""Size of a catalog file; 330 entries with their tools take about a tenth of it."""
_BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_CONTROL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\ufffe\uffff]")
"""Tabs are among them: YAML forbids them in indentation, and elsewhere a space does."""


def read_text(path: Path) -> str:
    """Return the text of the file.

    Raises:
        CatalogUnreadable: there is no such file, it is no regular file, or it may not be read.
        CatalogInvalid: it is not the kind of text described above.
    """
    try:
        # A named pipe would block at open, so what it is has to be asked before.
        if not stat.S_ISREG(path.stat().st_mode):
            raise _unreadable(path, "is not a file; give the path of a catalog file")
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except FileNotFoundError as exc:
        raise _unreadable(path, "there is no such file; check the path") from exc
    except OSError as exc:
        raise _unreadable(path, f"cannot be read: {exc.strerror or type(exc).__name__}") from exc
    except ValueError as exc:
        raise _unreadable(path, "is no usable path; it contains a NUL character") from exc
    if len(data) > MAX_BYTES:
        raise _unreadable(path, f"is larger than {MAX_BYTES} bytes; split it into several catalogs")
    return decode_text(path, data)


def _unreadable(path: Path, message: str) -> CatalogUnreadable:
    return CatalogUnreadable([Problem(path, None, None, message)])


def decode_text(path: Path, data: bytes) -> str:
    """Return the text that the bytes are, if it is the kind described above; the path is for messages.

    Raises:
        CatalogInvalid: it is not.
    """

    def refused(at: int, message: str) -> CatalogInvalid:
        return CatalogInvalid([Problem(path, data.count(b"\n", 0, at) + 1, None, message)])

    if data.startswith(_BYTE_ORDER_MARKS):
        raise refused(0, "begins with a byte order mark; save it as UTF-8 without BOM")
    if not data.strip():
        raise refused(0, "is empty; begin with version: 1 and servers:")
    if (at := data.find(b"\r")) >= 0:
        raise refused(at, "has a carriage return (Windows line end); save it with Unix line ends (LF)")
    try:
        text = data.decode()
    except UnicodeDecodeError as exc:
        raise refused(exc.start, "is not UTF-8; save it as UTF-8") from exc
    if found := _CONTROL.search(text):
        line = text.count("\n", 0, found.start()) + 1
        message = f"has the control character U+{ord(found[0]):04X}; remove it (a tab: write spaces)"
        raise CatalogInvalid([Problem(path, line, None, message)])
    return text
