"""Other programs of the same user do not look into a gateway."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.gateways import COMMAND_S, LOCKGATE, environment
from tests.servers import write_catalog


@pytest.mark.sec("SEC-065")
def test_another_program_of_the_same_user_reads_no_memory_of_the_gateway(tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path / "catalog.yaml", {"a": ["friendly"]})
    env = environment(tmp_path / "state", catalog=catalog, runtime="process", profile="all")
    command = [sys.executable, str(Path(__file__).parents[1] / "servers" / "peek.py"), *LOCKGATE, "serve", "--no-model"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=COMMAND_S, check=False)
    assert done.returncode == 0, done.stderr
    plain, gateway = json.loads(done.stdout)
    # The one that protects nothing is readable, so the other one is not for some other reason.
    assert (plain["ready"], plain["memory"]) == (True, "16 bytes")
    assert (gateway["ready"], gateway["memory"]) == (True, "PermissionError")
    assert gateway["core"][0] == "0"
