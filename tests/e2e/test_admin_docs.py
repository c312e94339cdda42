"""The admin's walk of docs/admin.md, run as it is written.

Knows how the page marks commands and what they print; nothing of what they do.
"""

import re
import subprocess
import sys
from pathlib import Path

from tests.e2e.gateways import COMMAND_S, ROOT, environment
from tests.gateway.registries import registry

PAGE = ROOT / "docs" / "admin.md"
EXPECTED = "#> "
BLOCK = re.compile(r"```sh\n(.*?)```", re.DOTALL)


def test_every_command_of_the_page_does_what_the_page_says(tmp_path: Path) -> None:
    blocks = BLOCK.findall(PAGE.read_text())
    assert len(blocks) >= 5
    script, expected = ["set -eu"], []
    for number, block in enumerate(blocks):
        for line in block.splitlines():
            if line.startswith(EXPECTED):
                expected.append((number, line.removeprefix(EXPECTED)))
            else:
                script.append(line)
        script.append(f"echo '=== end of block {number}'")
    env = environment(tmp_path / "state", runtime="process")
    folder = tmp_path / "walk"
    folder.mkdir()
    with registry(tmp_path / "registry") as hub:
        path = f"{Path(sys.executable).parent}:{env['PATH']}"
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)],
            cwd=folder,
            env={**env, "PATH": path, "REGISTRY": f"{hub.host}/acme"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=COMMAND_S * 10,
            check=False,
        )
    log = folder / "serve.log"
    assert done.returncode == 0, f"{done.stdout}\n{log.read_text() if log.exists() else ''}"
    printed = re.split(r"=== end of block \d+\n", done.stdout)
    for number, words in expected:
        assert words in printed[number], f"block {number} did not print {words!r}:\n{printed[number]}"
