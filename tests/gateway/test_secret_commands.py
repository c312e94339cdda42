"""`lockgate secret`, with a gateway that runs and without one, and what a running gateway makes of it."""

import asyncio
import json
import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest
from typer.testing import CliRunner

from gateway.cli import app
from gateway.errors import GatewayError, SettingsError
from gateway.redaction import KnownValues, Redactor, hidden_in_logs
from gateway.secrets import SecretValue
from gateway.serverlog import OneLine
from tests.gateway.running import running
from tests.gateway.test_isolation import HOLDER, shown, whose
from tests.servers import until

ROOT = Path(__file__).parents[2]
CANARY = "canary-0123456789-abcdef"


async def secret(folder: Path, *arguments: str, given: str = "", code: int = 0, **settings: str) -> str:
    """What one command says."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("LOCKGATE_")}
    changes = {f"LOCKGATE_{name.upper()}": value for name, value in settings.items()}
    environ = {**inherited, "LOCKGATE_STATE_DIR": str(folder / "state"), "LOCKGATE_VAULT_KEY": "file", **changes}
    command = [sys.executable, "-c", "from gateway.cli import main; main()", "secret", *arguments]
    done = await anyio.run_process(
        command, input=given.encode(), check=False, env={**environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.STDOUT
    )
    said = done.stdout.decode()
    assert done.returncode == code, said
    assert CANARY not in said
    return said


def alone(folder: Path, *arguments: str, given: str = "", code: int = 0, **settings: str) -> str:
    """The same in this process, without a gateway and without starting Python for each."""
    changes = {f"LOCKGATE_{name.upper()}": value for name, value in settings.items()}
    environ = {"LOCKGATE_STATE_DIR": str(folder / "state"), "LOCKGATE_VAULT_KEY": "file", **changes}
    done = CliRunner().invoke(app, ["secret", *arguments], input=given, env=environ)
    failed = done.exception if isinstance(done.exception, GatewayError) else None
    assert failed is not None or done.exception is None, done.exception
    said = done.output + str(failed or "")
    assert (0 if failed is None else 2 if isinstance(failed, SettingsError) else 1) == code, said
    assert CANARY not in said
    return said


def listed(folder: Path) -> list[tuple[str, str]]:
    found: list[dict[str, Any]] = json.loads(alone(folder, "list", "--json"))
    return [(one["name"], one["owner"]) for one in found]


@pytest.mark.sec("SEC-058")
def test_the_commands_without_a_gateway(tmp_path: Path) -> None:
    assert listed(tmp_path) == []
    alone(tmp_path, "set", "brave.api_key", given=CANARY + "\n")
    alone(tmp_path, "set", "brave.api_key", "--user", "alice", given=CANARY)
    assert listed(tmp_path) == [("brave.api_key", ""), ("brave.api_key", "alice")]
    assert "is not the name of a secret" in alone(tmp_path, "set", "brave.a b", given="x", code=2)
    assert "is empty" in alone(tmp_path, "set", "brave.x", given="", code=1)
    assert "no secret brave.none to replace" in alone(tmp_path, "rotate", "brave.none", given="x", code=1)
    alone(tmp_path, "rotate", "brave.api_key", given=CANARY + "2")
    (tmp_path / "file").write_text(f"# ours\na.b={CANARY}=x\n\nc.d = spaces \n")
    alone(tmp_path, "import", str(tmp_path / "file"))
    alone(tmp_path, "import", "-", given=json.dumps({"e.f": CANARY}))
    assert "line 1 is not NAME=VALUE" in alone(tmp_path, "import", "-", given=CANARY, code=1)
    (tmp_path / "phrase").write_text("correct horse battery")
    (tmp_path / "phrase").chmod(0o600)
    phrase = ("--passphrase-file", str(tmp_path / "phrase"))
    alone(tmp_path, "backup", str(tmp_path / "backup"), *phrase)
    alone(tmp_path, "rm", "a.b")
    assert ("a.b", "") not in listed(tmp_path)
    assert "older than the vault" in alone(tmp_path, "restore", str(tmp_path / "backup"), *phrase, code=1)
    alone(tmp_path, "restore", str(tmp_path / "backup"), *phrase, "--replace")
    assert ("a.b", "") in listed(tmp_path)
    assert "new key" in alone(tmp_path, "rotate", "--key")
    assert "give the name of a secret, or --key" in alone(tmp_path, "rotate", code=2)
    elsewhere = f"file:{tmp_path / 'keys' / 'lockgate.key'}"
    assert f"LOCKGATE_VAULT_KEY={elsewhere}" in alone(tmp_path, "rotate", "--key", "--to", elsewhere)
    assert "generation" in alone(tmp_path, "check", vault_key=elsewhere)
    assert "is not in" in alone(tmp_path, "check", code=1)
    on_disk = [path.read_bytes() for path in (tmp_path / "state").rglob("*") if path.is_file()]
    assert on_disk
    assert not any(CANARY.encode() in content for content in on_disk)


@pytest.mark.anyio
@pytest.mark.sec("SEC-063")
async def test_a_secret_that_is_set_lets_a_waiting_server_start(tmp_path: Path) -> None:
    async with running(tmp_path, {"holder": HOLDER}, vault_key="file") as place:
        session = await place.session()
        assert (await session.ask("tools/list"))["result"]["tools"] == []
        server = place.gateway.pool.servers["holder"]
        assert "the secret holder.key is missing: run lockgate secret set holder.key" in server.error
        assert place.local.starts == []
        await secret(tmp_path, "set", "holder.key", given=CANARY)
        with anyio.fail_after(120):
            while not (await session.ask("tools/list"))["result"]["tools"]:
                await asyncio.sleep(0)
        assert await whose(place, "anybody") == shown(CANARY)
        await secret(tmp_path, "rotate", "holder.key", given=CANARY + "2")
        assert await whose(place, "anybody") == shown(CANARY + "2")
        await until(lambda: place.gateway.pool.draining == 0, "the server with the old value has ended", 60)
        await place.gateway.vault.rotate()
        await secret(tmp_path, "rm", "holder.key")
        with pytest.raises(Exception, match=r"lockgate secret set holder\.key"):
            await whose(place, "anybody")


@pytest.mark.anyio
@pytest.mark.sec("SEC-058")
async def test_known_values_stay_out_of_the_log_and_the_audit_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path, {"holder": HOLDER}, vault_key="file") as place:
        await place.gateway.vault.put("holder.key", CANARY.encode())
        assert await whose(place, "anybody") == shown(CANARY)
        logging.getLogger("gateway.test").warning("said %s and %s", CANARY, CANARY.encode().hex())
        session = await place.session()
        await session.ask("tools/call", {"name": CANARY, "arguments": {}})
        await session.ask("resources/read", {"uri": f"test://{CANARY}"})
        assert CANARY not in json.dumps(place.audit())
        assert "[hidden secret: holder.key]" in json.dumps(place.audit())
    assert CANARY not in caplog.text
    assert CANARY.encode().hex() not in caplog.text


def test_tracebacks_hide_known_values(tmp_path: Path) -> None:
    known, stream = KnownValues(), tmp_path / "log"
    known.add([SecretValue("a.b", CANARY.encode())])
    handler = logging.FileHandler(stream)
    handler.setFormatter(OneLine("%(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    try:
        with hidden_in_logs(known):
            try:
                raise ValueError(f"bad value {CANARY}")
            except ValueError:
                logging.getLogger("gateway.test").exception("it broke with %r", [CANARY])
    finally:
        root.removeHandler(handler)
        handler.close()
    text = stream.read_text()
    assert "Traceback" in text
    assert CANARY not in text
    assert text.count("[hidden secret: a.b]") == 2


def test_what_holds_values_does_not_show_or_pickle_them() -> None:
    value = SecretValue("a.b", CANARY.encode())
    for holder in (value, Redactor([value]), {"x": value}):
        assert CANARY not in repr(holder)
    with pytest.raises(TypeError):
        pickle.dumps({"x": value})
