"""`lockgate key` beside a running gateway and without one, and a gateway that serves https itself."""

import datetime
import json
import os
import sys
from pathlib import Path
from typing import NamedTuple

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from typer import BadParameter

from gateway.auth.keys import Keys
from gateway.client import gateway_client
from gateway.commands import key
from gateway.database import Database
from gateway.errors import SettingsError
from gateway.running import own_tls
from gateway.wire.http_client import Answer, HttpFailure, HttpOrigin
from tests.gateway.auth.test_guard import ask, bearer
from tests.gateway.running import running

pytestmark = pytest.mark.anyio

ONE = {"a": ["friendly"]}


class Result(NamedTuple):
    exit_code: int
    stdout: str
    stderr: str


async def lockgate(state: Path, *arguments: str) -> Result:
    """`lockgate key` in a process of its own."""
    env = {**os.environ, "LOCKGATE_STATE_DIR": str(state), "LOCKGATE_AUTH": "keys"}
    command = [str(Path(sys.executable).with_name("lockgate")), "key", *arguments]
    done = await anyio.run_process(command, env=env, check=False)
    return Result(done.returncode, done.stdout.decode(), done.stderr.decode())


async def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    state = tmp_path / "state"
    made = await lockgate(state, "create", "ci", "--scope", "model", "--group", "robots", "--json")
    assert made.exit_code == 0, made.stderr
    token = json.loads(made.stdout)["key"]
    assert json.loads((state / "audit.jsonl").read_text())["name"] == "key created"
    async with running(tmp_path, ONE, auth="keys") as place:
        assert (await ask(place, "/v1/models", bearer(token))).status == 200
        listed = await lockgate(state, "list", "--json")
        (found,) = json.loads(listed.stdout)
        assert (found["name"], found["groups"], found["scopes"], found["state"]) == (
            "ci",
            ["robots"],
            ["model"],
            "good",
        )
        assert found["used_at"] is not None
        assert token not in listed.stdout
        assert token.startswith(found["prefix"])
        revoked = await lockgate(state, "revoke", "ci")
        assert revoked.exit_code == 0, revoked.stderr
        assert (await ask(place, "/v1/models", bearer(token))).status == 401
        assert "revoked" in (await lockgate(state, "list")).stdout
        with pytest.raises(SettingsError, match="another name"):
            await Keys(place.gateway.database).create("ci")


async def test_mistakes_are_told(tmp_path: Path) -> None:
    async with Database(f"sqlite:///{tmp_path}/lockgate.db") as database:
        keys = Keys(database)
        for name in ("a b", "", "x" * 65, "a\n", "\u00e9", 'a"b'):
            with pytest.raises(SettingsError, match="printable ASCII"):
                await keys.create(name)
        with pytest.raises(SettingsError, match="there are mcp"):
            await keys.create("x", scopes=["all"])
        with pytest.raises(SettingsError, match="printable ASCII"):
            await keys.create("x", groups=["a b"])
        with pytest.raises(SettingsError, match="no key"):
            await keys.revoke("nobody")
        assert await keys.list() == []
    for span in ("soon", "0d", "-1d", "1", "90", "d", "1.5h"):
        with pytest.raises(BadParameter, match="no span"):
            key.ends_at(span)
    assert key.ends_at("never") is None


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate for a name that nobody here connects to, and its key."""
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "gateway.example")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder(name, name, private.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(private, hashes.SHA256())
    )
    cert_path, key_path = folder / "cert.pem", folder / "key.pem"
    cert_path.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    encoding, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    key_path.write_bytes(private.private_bytes(encoding, form, serialization.NoEncryption()))
    return cert_path, key_path


async def test_with_a_certificate_it_serves_https_and_the_command_line_knows_it(tmp_path: Path) -> None:
    cert, private = certificate(tmp_path)
    async with running(tmp_path, ONE, auth="keys", tls_cert=cert, tls_key=private) as place:
        assert place.url.startswith("https://127.0.0.1:")
        async with gateway_client(place.gateway.settings) as client:
            assert {tool["name"] for tool in await client.list_tools()} >= {"a__echo"}
        for tls, fails in ((own_tls(place.gateway.settings), False), (None, True)):
            origin = HttpOrigin(place.url, tls=tls)
            answer = Answer()
            origin.request("GET", "/healthz", b"", b"", answer)
            try:
                if fails:
                    with pytest.raises(HttpFailure, match="certificate"):
                        await answer.content()
                else:
                    assert b'"ok"' in await answer.content()
            finally:
                await origin.aclose()
