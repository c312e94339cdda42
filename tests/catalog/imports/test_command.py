"""`lockgate catalog import` and `export` as a user meets them."""

import json
import os
import subprocess
import sys
from pathlib import Path

from catalog import load_catalog

LOCKGATE = Path(sys.executable).with_name("lockgate")
DOCUMENTS = Path(__file__).parent / "documents"


def catalog(*args: str | Path, code: int = 0, stdin: str = "") -> tuple[str, str]:
    environ = {"PATH": os.environ["PATH"], "HOME": "/nonexistent"}
    done = subprocess.run(
        [LOCKGATE, "catalog", *args], env=environ, input=stdin, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


def test_an_import_writes_a_catalogue_that_loads_and_says_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    _, said = catalog("import", DOCUMENTS / "docker.yaml", "--output", file)
    assert "broken: left out:" in said
    assert "19 entries carried over, 3 left out" in said
    assert len(load_catalog(file).entries) == 19
    _, said = catalog("import", DOCUMENTS / "docker.yaml", "--output", file, code=2)
    assert "name a new file" in said


def test_standard_input_and_output_serve_pipes() -> None:
    written, _ = catalog("export", "--format", "mcpServers", "time")
    assert set(json.loads(written)["mcpServers"]) == {"time"}
    back, said = catalog("import", "--no-ask", "-", stdin=written)
    assert "mcp-server-time" in back
    assert "1 entries carried over, 0 left out" in said


def test_bad_input_ends_with_a_reason() -> None:
    _, said = catalog("import", "-", code=2, stdin="[]")
    assert "expected an object with servers" in said
    _, said = catalog("import", "-", "--format", "dockr", code=2)
    assert "unknown format 'dockr'" in said
    _, said = catalog("export", "--format", "registry", code=2)
    assert "name one entry" in said
    _, said = catalog("import", "--no-ask", "-", code=1, stdin='{"mcpServers": {"x": {"command": "node"}}}')
    assert "x: left out: runs node" in said
