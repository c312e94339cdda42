"""`lockgate serve` takes a changed catalogue: on SIGHUP and by command.

Knows no insides: the admin API as the command line uses it.
"""

import json
import signal
from pathlib import Path

from tests.e2e.gateways import RunningGateway, eventually

SEEN_S = 60


def write(path: Path, *ids: str) -> None:
    entry = {"title": "Far", "description": "Is far away.", "remote": {"url": "http://127.0.0.1:9/mcp"}}
    profiles = {"starter": {"title": "Starter", "servers": list(ids)}}
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"version": 1, "servers": dict.fromkeys(ids, entry), "profiles": profiles}))
    new.replace(path)


def test_sighup_and_the_command_take_a_good_file_and_leave_a_wrong_one(tmp_path: Path) -> None:
    file = tmp_path / "catalog.yaml"
    write(file, "one")
    with RunningGateway(tmp_path / "state", catalog=file, runtime="process") as gateway:
        file.write_text("version: 1\nservers: {one: {title: One}}\n")
        gateway.process.send_signal(signal.SIGHUP)
        error = eventually("the reason is told", lambda: gateway.admin("GET", "/catalog")["error"], SEEN_S)
        assert "catalog.yaml:2: one: the key description is missing" in error
        refused = gateway.cli("catalog", "reload")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert "the key description is missing" in refused.stderr
        assert gateway.admin("GET", "/catalog")["entries"] == 1

        write(file, "one", "two")
        taken = gateway.cli("catalog", "reload")
        assert taken.returncode == 0, taken.stderr
        # The gateway may have seen the file before it was asked.
        assert taken.stdout.strip() in ("1 added, 1 profiles changed", "nothing changed")
        assert gateway.admin("GET", "/catalog")["entries"] == 2
        assert {server["id"] for server in gateway.servers()} == {"one", "two"}
