"""Vaults killed at every step of every operation, and at random moments: nothing acknowledged is lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CYCLES = 300
LONGEST_S = 1800
"""A bound for a machine that does much else; about a minute on a quiet one."""


@pytest.mark.sec("SEC-064")
def test_nothing_acknowledged_is_lost_and_nothing_half_written_is_read(tmp_path: Path) -> None:
    order = {"state": str(tmp_path / "state"), "seed": 20261125, "cycles": CYCLES}
    done = subprocess.run(
        [sys.executable, "-m", "tests.gateway.vaultkilled", json.dumps(order)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    said = json.loads(done.stdout)
    print(said)
    assert sum(said["cycles"].values()) >= CYCLES
    # Each operation that writes was killed at each of several steps before it came to its end.
    assert all(said["steps"][operation] >= 10 for operation in ("put", "rotate", "move", "restore", "import"))
