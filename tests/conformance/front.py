"""A gateway in front of one server: its catalogue, its state folder, its process.

Knows `lockgate serve`, the run file and the admin API; nothing of the suite.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from catalog import Entry
from tests.conformance import fixture
from tests.conformance.process import Background, Ended
from tests.servers.conformance import ONLY_AS_TASK

ROOT: Final = Path(__file__).parents[2]
LOCKGATE: Final = (sys.executable, "-c", "from gateway.cli import main; main()")
SERVER: Final = "fixture"
RECORD: Final = "record"
READY_S: Final = 120
TASK_AFTER_S: Final = 0.7
"""Less than the fixture's jobs take."""
START_S: Final = 300
"""The first start after a change of the fixture installs it with the SDK it needs."""


def remote_entry(url: str, *, interactive: bool) -> dict[str, Any]:
    """An entry for a server that runs elsewhere."""
    return _entry({"remote": {"url": url}}, interactive=interactive)


def package_entry(era: str, *, interactive: bool) -> dict[str, Any]:
    """An entry for the packed fixture, spoken to over stdio. It keeps a record of its lines in a volume."""
    package = {"ecosystem": "pypi", "name": fixture.PROGRAM, "version": fixture.version()}
    command = [fixture.PROGRAM, "--transport", "stdio", "--era", era, "--record", f"/{RECORD}"]
    volumes = [{"name": RECORD, "target": f"/{RECORD}"}]
    return _entry({"package": package, "command": command, "volumes": volumes}, interactive=interactive)


def _entry(way: Mapping[str, Any], *, interactive: bool) -> dict[str, Any]:
    texts = {"title": "Conformance fixture", "description": "What the conformance suite asks for."}
    asks = {"interactive": True} if interactive and "interactive" in Entry.model_fields else {}
    tasks = {"after_s": TASK_AFTER_S, "only": list(ONLY_AS_TASK)}
    return {**texts, **way, **asks, "tasks": tasks, "limits": {"start_timeout_s": READY_S, "call_timeout_s": READY_S}}


@contextmanager
def gateway(entry: Mapping[str, Any], cache: Path, log: Path) -> Iterator[str]:
    """A gateway whose only profile offers the entry under plain names; gives its endpoint once the server runs.

    What a server over stdio recorded lies in `RECORD` beside the log afterwards.

    Raises:
        Ended: the gateway or the server did not start; says why.
    """
    with TemporaryDirectory(prefix="lockgate-conformance-") as folder:
        catalog, state = Path(folder) / "catalog.yaml", Path(folder) / "state"
        profile = {"title": "Conformance", "servers": [SERVER], "plain_names": True}
        document = {"version": 1, "servers": {SERVER: dict(entry)}, "profiles": {"conformance": profile}}
        catalog.write_text(json.dumps(document))  # JSON is YAML
        env = _environment(cache, catalog, state)
        with Background("the gateway", [*LOCKGATE, "serve", "--no-model"], log, env) as program:
            running = program.wait_for("run file", lambda: _run_file(state), READY_S)
            _start_server(program, running)
            yield f"{running['url']}/mcp"
            program.check()
        recorded, kept = state / "volumes" / SERVER / RECORD, log.parent / RECORD
        shutil.rmtree(kept, ignore_errors=True)
        if recorded.is_dir():
            shutil.copytree(recorded, kept)


def _environment(cache: Path, catalog: Path, state: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LOCKGATE_")}
    settings = {
        "PORT": "0",
        "CATALOG": str(catalog),
        "PROFILE": "conformance",
        "STATE_DIR": str(state),
        "CACHE_DIR": str(cache / "gateway"),
        "RUNTIME": "process",
    }
    # The packed fixture is found in a folder, whatever installs it; what it needs comes from the usual index.
    wheels = fixture.build_wheel(cache / "wheels").parent.as_uri()
    links = {}
    for name, separator in (("PIP_FIND_LINKS", " "), ("UV_FIND_LINKS", ",")):
        links[name] = separator.join(filter(None, [inherited.get(name), wheels]))
    python = {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    return {**inherited, **python, **links, **{f"LOCKGATE_{name}": value for name, value in settings.items()}}


def _run_file(state: Path) -> dict[str, Any] | None:
    try:
        running: dict[str, Any] = json.loads((state / "gateway.json").read_bytes())
        urllib.request.urlopen(f"{running['url']}/healthz", timeout=READY_S).close()
    except (OSError, ValueError):
        return None
    return running


def _start_server(program: Background, running: Mapping[str, Any]) -> None:
    url = f"{running['url']}/admin/servers/{SERVER}/start"
    headers = {"Authorization": f"Bearer {running['admin_token']}"}
    try:
        urllib.request.urlopen(urllib.request.Request(url, b"", headers), timeout=START_S).close()
    except urllib.error.HTTPError as exc:
        reason = exc.read().decode(errors="replace")
        raise Ended(f"the gateway could not start the server: HTTP {exc.code} {reason}\n{program.tail()}") from exc
    except OSError as exc:
        raise Ended(f"the gateway did not answer: {exc}\n{program.tail()}") from exc
