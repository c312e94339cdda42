"""Every store of secrets behind the one protocol: the vault, variables, files, a program, KV version 2, 1Password."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from anyio import to_thread

from gateway.database import Database
from gateway.errors import SecretsError, SettingsError
from gateway.secrets import EnvironmentSecrets, FolderSecrets, Secrets, SecretStore, variable
from gateway.stores import BaoSecrets, CommandSecrets, OnePasswordSecrets, open_stores
from gateway.vault import Vault
from tests.gateway import bao
from tests.gateway.test_secrets import entry

pytestmark = pytest.mark.anyio

VALUE = 's3cr3t/va+lue"\u00e9 of brave'
TOKEN = "a token for the test"
PROGRAM = """#!/bin/sh
case "$1" in
  brave.api_key) cat "$(dirname "$0")/value" ;;
  brave.broken) echo "$1 is broken: hidden-detail" >&2; exit 3 ;;
  brave.binary) printf '\\377\\376' ;;
esac
"""
OP = """#!/bin/sh
# As `op read --no-newline op://VAULT/ITEM/FIELD` behaves: the value alone, or a line on stderr and code 1.
[ "$1 $2" = "read --no-newline" ] || exit 2
if [ "$OP_SERVICE_ACCOUNT_TOKEN" != "a token for the test" ]; then
  echo "[ERROR] 2026/01/01 00:00:00 You are not currently signed in." >&2; exit 1
fi
case "$3" in
  op://Team/brave/api_key) cat "$(dirname "$0")/value" ;;
  op://Team/brave/*) echo "[ERROR] could not read '$3': item 'brave' does not have a field 'x'" >&2; exit 1 ;;
  op://Team/*) echo "[ERROR] could not read secret '$3': \\"x\\" isn't an item in the \\"Team\\" vault." >&2; exit 1 ;;
esac
"""


def program(folder: Path, name: str, text: str) -> str:
    (folder / "value").write_text(VALUE)
    path = folder / name
    path.write_text(text)
    path.chmod(0o700)
    return str(path)


@pytest.fixture
def token() -> EnvironmentSecrets:
    return EnvironmentSecrets({variable("openbao.token"): bao.ROOT, variable("onepassword.token"): TOKEN})


@pytest.fixture(scope="module")
def openbao() -> Iterator[bao.Bao]:
    with bao.running() as server:
        server.put("brave", api_key=VALUE)
        server.put("corp_login", value=VALUE)
        yield server


@pytest.fixture(params=["vault", "environment", "folder", "command", "openbao", "onepassword"])
async def store(
    request: pytest.FixtureRequest, tmp_path: Path, openbao: bao.Bao, token: EnvironmentSecrets
) -> AsyncIterator[SecretStore]:
    """One store of each kind that holds `brave.api_key` and nothing else."""
    tmp_path.chmod(0o700)
    match request.param:
        case "vault":
            async with Database(f"sqlite:///{tmp_path / 'lockgate.db'}") as database:
                vault = Vault(database, tmp_path, "file")
                await vault.open()
                await vault.put("brave.api_key", VALUE.encode())
                yield vault
        case "environment":
            yield EnvironmentSecrets({variable("brave.api_key"): VALUE})
        case "folder":
            (tmp_path / "brave.api_key").write_text(VALUE + "\n")
            (tmp_path / "brave.api_key").chmod(0o600)
            yield FolderSecrets(tmp_path)
        case "command":
            yield CommandSecrets([program(tmp_path, "answer", PROGRAM)])
        case "openbao":
            yield BaoSecrets(openbao.store, token.get)
        case "onepassword":
            yield OnePasswordSecrets("Team", token.get, program(tmp_path, "op", OP))


async def test_each_store_gives_what_it_holds_and_nothing_else(store: SecretStore) -> None:
    found = await to_thread.run_sync(store.get, "brave.api_key")
    assert found is not None
    assert found.reveal().decode() == VALUE
    assert found.name == "brave.api_key"
    for name in ("brave.other", "other.api_key"):
        assert await to_thread.run_sync(store.get, name) is None
    assert await to_thread.run_sync(store.get, "brave.api_key", "alice") is None
    assert "brave" in store.how_to_set("brave.api_key").lower()


@pytest.mark.sec("SEC-063")
async def test_a_missing_secret_is_refused_in_front_of_each_store(store: SecretStore) -> None:
    secrets = Secrets([store])
    with pytest.raises(SecretsError, match=r"the secret other\.api_key is missing: ") as caught:
        await to_thread.run_sync(secrets.resolve, entry("other", "other.api_key"))
    assert store.how_to_set("other.api_key") in str(caught.value)


def test_a_program_that_fails_is_named_and_what_it_said_is_not(tmp_path: Path) -> None:
    store = CommandSecrets([program(tmp_path, "answer", PROGRAM)])
    with pytest.raises(SecretsError, match="code 3") as caught:
        store.get("brave.broken")
    assert "hidden-detail" not in str(caught.value)
    with pytest.raises(SecretsError, match="not UTF-8"):
        store.get("brave.binary")
    with pytest.raises(SecretsError, match="could not be run"):
        CommandSecrets([str(tmp_path / "nothing")]).get("brave.api_key")


def test_a_name_without_a_dot_has_a_place_in_each_store(
    openbao: bao.Bao, token: EnvironmentSecrets, tmp_path: Path
) -> None:
    found = BaoSecrets(openbao.store, token.get).get("corp_login")
    assert found is not None
    assert found.reveal().decode() == VALUE
    one_password = OnePasswordSecrets("Team", token.get, program(tmp_path, "op", OP))
    assert one_password.get("corp_login") is None
    assert "op://Team/corp_login/password" in one_password.how_to_set("corp_login")


def test_1password_that_is_not_signed_in_is_not_taken_for_empty(tmp_path: Path) -> None:
    store = OnePasswordSecrets("Team", lambda name: None, program(tmp_path, "op", OP))
    with pytest.raises(SecretsError, match="op signin"):
        store.get("brave.api_key")


async def test_the_setting_lists_stores_and_their_order(
    tmp_path: Path, openbao: bao.Bao, token: EnvironmentSecrets
) -> None:
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "own" / "brave.api_key").write_text("of the folder")
    (tmp_path / "own" / "brave.api_key").chmod(0o600)
    answer = program(tmp_path, "answer", PROGRAM)
    listed = f"vault; environment; openbao:{openbao.store}; folder:{tmp_path / 'own'}; command:{answer} ; op:Team"
    async with Database(f"sqlite:///{tmp_path / 'lockgate.db'}") as database:
        vault = Vault(database, tmp_path, "file")
        await vault.open()
        stores = open_stores(listed, vault, token, tmp_path)
        kinds = ["Vault", "EnvironmentSecrets", "BaoSecrets", "FolderSecrets", "CommandSecrets", "OnePasswordSecrets"]
        assert [type(store).__name__ for store in stores] == kinds
        secrets, one = Secrets(stores), entry("brave", "brave.api_key")
        found = await to_thread.run_sync(secrets.resolve, one)
        assert found["brave.api_key"].reveal().decode() == VALUE  # of the KV engine, with the environment's token
        await vault.put("brave.api_key", b"of the vault")
        found = await to_thread.run_sync(secrets.resolve, one)
        assert found["brave.api_key"].reveal() == b"of the vault"
        for bad in ("nothing", "folder;mystery:x", "command:", "op:", "vault:x", "openbao:http://192.0.2.1/secret",
                    "openbao:https://user@host/secret"):  # fmt: skip
            with pytest.raises(SettingsError, match="LOCKGATE_STORES"):
                open_stores(bad, vault, token, tmp_path)
        assert [type(store).__name__ for store in open_stores("", vault, token, tmp_path)] == [
            "Vault", "EnvironmentSecrets", "FolderSecrets"
        ]  # fmt: skip
