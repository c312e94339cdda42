"""The fixture server in its forms: running behind a URL, or packed for the gateway to install and run over stdio.

Knows how to start tests/servers/conformance.py; nothing of gateways.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.conformance.process import Background

SCRIPT: Final = Path(__file__).parents[1] / "servers" / "conformance.py"
READY_S: Final = 120
KEPT_S: Final = 24 * 3600
PROGRAM: Final = "lockgate-conformance-fixture"
MODULE: Final = "lockgate_conformance_fixture"
REQUIRES: Final = "mcp>=2.3,<2.4"


@contextmanager
def serving(era: str, log: Path) -> Iterator[str]:
    """The fixture over HTTP, for the length of the body; gives its URL."""
    argv = [sys.executable, str(SCRIPT), "--transport", "http", "--era", era]
    with Background("the fixture", argv, log, os.environ) as program:
        port = program.wait_for("port", lambda: program.line_after("PORT="), READY_S)
        yield f"http://127.0.0.1:{port}/mcp"


def version() -> str:
    """Changes with the script, so that a package store never takes an old one for the new."""
    return f"0.{int.from_bytes(hashlib.sha256(SCRIPT.read_bytes()).digest()[:4])}"


def build_wheel(folder: Path) -> Path:
    """Pack the script as a wheel with one program; written by hand, since a build tool would add nothing."""
    info = f"{MODULE}-{version()}.dist-info"
    files = {
        f"{MODULE}.py": SCRIPT.read_bytes(),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {PROGRAM}\nVersion: {version()}\nRequires-Dist: {REQUIRES}\n"
        f"Requires-Dist: uvicorn\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: lockgate-tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\n{PROGRAM} = {MODULE}:main\n".encode(),
    }
    record = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,", ""]).encode()
    folder.mkdir(parents=True, exist_ok=True)
    wheel = folder / f"{MODULE}-{version()}-py3-none-any.whl"
    part = folder / f"{wheel.name}.{os.getpid()}"
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    part.replace(wheel)
    return wheel


def forget_earlier(cache: Path) -> None:
    """Remove what earlier versions of the script left: their wheels and the gateway's installations of them.

    Another checkout may be at work with another version; it is left a day.
    """
    for path in [*cache.glob(f"wheels/{MODULE}-*"), *cache.glob(f"gateway/packages/pypi/{PROGRAM}-*")]:
        if f"-{version()}-" not in path.name and time.time() - path.stat().st_mtime > KEPT_S:
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
