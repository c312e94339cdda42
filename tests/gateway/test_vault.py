"""The vault: what it keeps, what it refuses, and that nothing can be read from what lies on the disk.

Knows the vault and its files; commands and servers are tested elsewhere."""

import base64
import importlib
import itertools
import json
import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy.exc import OperationalError

from gateway.database import Database
from gateway.errors import SecretsError, SettingsError
from gateway.vault import Change, Place, Vault
from gateway.vault.backup import back_up, restore
from gateway.vault.roots import FileRoot, open_root

pytestmark = pytest.mark.anyio

CANARY = b'canary/0123+4567"89-a-secret'
PASSPHRASE = b"correct horse battery"


@asynccontextmanager
async def opened(folder: Path, key: str = "file") -> AsyncIterator[Vault]:
    folder.mkdir(mode=0o700, exist_ok=True)
    async with Database(f"sqlite:///{folder / 'lockgate.db'}") as database:
        vault = Vault(database, folder, key)
        await vault.open()
        yield vault


def revealed(vault: Vault, name: str, owner: str = "") -> bytes | None:
    found = vault.get(name, owner)
    return None if found is None else found.reveal()


def sql(folder: Path, statement: str, *values: object) -> None:
    """What somebody who can write to the database file could do."""
    with sqlite3.connect(folder / "lockgate.db") as connection:
        connection.execute(statement, values)
        connection.commit()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


# -- keeping -------------------------------------------------------------------------------------


async def test_values_are_kept_by_name_and_owner(tmp_path: Path) -> None:
    async with opened(tmp_path) as vault:
        assert vault.root == ""
        assert vault.get("a.b") is None
        await vault.put("a.b", b"shared")
        await vault.put("a.b", b"of alice", "alice")
    async with opened(tmp_path) as vault:
        assert revealed(vault, "a.b") == b"shared"
        assert revealed(vault, "a.b", "alice") == b"of alice"
        assert revealed(vault, "a.b", "bob") is None
        assert [(one.owner, one.name) for one in vault.kept()] == [("", "a.b"), ("alice", "a.b")]
        before = vault.version(Place("secret", "", "a.b"))
        await vault.remove("a.b")
        assert revealed(vault, "a.b") is None
        await vault.put("a.b", b"shared")
        assert vault.version(Place("secret", "", "a.b")) > before
        assert not await vault.remove("nothing.there")


async def test_several_changes_are_made_together_or_not_at_all(tmp_path: Path) -> None:
    async with opened(tmp_path) as vault:
        with pytest.raises(SecretsError, match=r"the secret a\.c is empty"):
            await vault.write([Change(Place("secret", "", "a.b"), b"good"), Change(Place("secret", "", "a.c"), b"")])
        assert vault.kept() == []


@pytest.mark.sec("SEC-064")
async def test_nothing_on_the_disk_can_be_read_without_the_key(tmp_path: Path) -> None:
    async with opened(tmp_path) as vault:
        await vault.put("a.b", CANARY)
        await vault.put("a.b", CANARY, "alice", "token")
        await back_up(vault, tmp_path / "backup", PASSPHRASE)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert {"lockgate.db", "backup", "vault.key", "vault.mark"} <= {path.name for path in files}
        looks = (CANARY, base64.b64encode(CANARY), CANARY.hex().encode(), quote(CANARY).encode(), CANARY[::-1])
        for path in files:
            content = path.read_bytes()
            assert not any(look[:16] in content for look in looks), path
            if path.name in ("backup", "vault.key"):
                assert stat.S_IMODE(path.stat().st_mode) == 0o600
    key = json.loads((tmp_path / "vault.key").read_bytes())
    (tmp_path / "vault.key").write_text(json.dumps(dict.fromkeys(key, base64.b64encode(bytes(32)).decode())))
    async with opened(tmp_path) as vault:
        with pytest.raises(SecretsError, match="does not open the vault"):
            vault.get("a.b")
        with pytest.raises(SecretsError, match="does not open the vault"):
            await vault.put("a.c", b"more")


TAMPERING = {
    "two rows exchanged": "UPDATE vault_items SET sealed = (SELECT sealed FROM vault_items WHERE owner = 'bob') "
    "WHERE owner = 'alice'",
    "another owner": "UPDATE vault_items SET owner = 'mallory' WHERE owner = 'alice'",
    "another name": "UPDATE vault_items SET name = 'a.c' WHERE owner = 'alice'",
    "an older version": "UPDATE vault_items SET version = 7 WHERE owner = 'alice'",
    "a row removed": "DELETE FROM vault_items WHERE owner = 'alice'",
    "a row added": "INSERT INTO vault_items SELECT kind, 'mallory', name, version, changed_at, data_key, sealed "
    "FROM vault_items WHERE owner = 'alice'",
    "a bit of a value": "UPDATE vault_items SET sealed = zeroblob(length(sealed)) WHERE owner = 'alice'",
    "a bit of a key": "UPDATE vault_items SET data_key = zeroblob(length(data_key)) WHERE owner = 'alice'",
    "another generation": "UPDATE vault SET generation = generation + 1",
    "another sum": "UPDATE vault SET sum = zeroblob(32)",
    "another root": """UPDATE vault SET root = '{"kind": "command", "key": "x"}'""",
    "another id": "UPDATE vault SET id = '00'",
    "no vault": "DELETE FROM vault",
}


@pytest.mark.sec("SEC-064")
@pytest.mark.parametrize("how", TAMPERING)
async def test_a_database_that_was_changed_is_noticed_and_not_read(tmp_path: Path, how: str) -> None:
    async with opened(tmp_path) as vault:
        await vault.put("a.b", b"of alice", "alice")
        await vault.put("a.b", b"of bob", "bob")
    sql(tmp_path, TAMPERING[how])
    async with opened(tmp_path) as vault:
        for owner in ("alice", "bob", "mallory"):
            with pytest.raises(SecretsError, match="cannot be used"):
                vault.get("a.b", owner)
        with pytest.raises(SecretsError):
            await vault.put("a.b", b"new")


@pytest.mark.sec("SEC-064")
async def test_an_older_row_put_back_is_noticed(tmp_path: Path) -> None:
    async with opened(tmp_path) as vault:
        await vault.put("a.b", b"old")
    with sqlite3.connect(tmp_path / "lockgate.db") as connection:
        old = connection.execute("SELECT * FROM vault_items").fetchone()
    connection.close()
    async with opened(tmp_path) as vault:
        await vault.put("a.b", b"new")
    sql(tmp_path, "DELETE FROM vault_items")
    sql(tmp_path, "INSERT INTO vault_items VALUES (?, ?, ?, ?, ?, ?, ?)", *old)
    async with opened(tmp_path) as vault:
        with pytest.raises(SecretsError, match="not the ones that were written"):
            vault.get("a.b")


@pytest.mark.sec("SEC-064")
async def test_an_older_database_is_refused_until_somebody_says_that_it_is_meant(tmp_path: Path) -> None:
    async with opened(tmp_path) as vault:
        await vault.put("a.b", b"old")
    old = (tmp_path / "lockgate.db").read_bytes()
    async with opened(tmp_path) as vault:
        await vault.put("a.b", b"new")
    (tmp_path / "lockgate.db").write_bytes(old)
    async with opened(tmp_path) as vault:
        with pytest.raises(SecretsError, match="older than the last one seen here") as caught:
            vault.get("a.b")
        assert "lockgate secret check --accept" in str(caught.value)
        await vault.accept()
        assert revealed(vault, "a.b") == b"old"
    async with opened(tmp_path) as vault:
        assert revealed(vault, "a.b") == b"old"


@pytest.mark.sec("SEC-064")
async def test_a_database_that_vanished_is_not_a_new_vault(tmp_path: Path) -> None:
    async with opened(tmp_path) as vault:
        await vault.put("a.b", b"value")
    (tmp_path / "lockgate.db").unlink()
    async with opened(tmp_path) as vault:
        with pytest.raises(SecretsError, match="holds no vault"):
            await vault.put("a.b", b"value")
        await vault.accept()
        await vault.put("a.b", b"value")


# -- roots ---------------------------------------------------------------------------------------

KMS = """
import base64, sys
value = base64.b64decode(sys.stdin.readline())
flipped = bytes(byte ^ 0x5A for byte in value)
sys.stdout.write(base64.b64encode(flipped).decode() + "\\n")
"""
RING = """
import json, os, pathlib
from keyring.backend import KeyringBackend

class Ring(KeyringBackend):
    '''A real backend of the keyring library, kept in a file of the test.'''
    priority = 5
    path = pathlib.Path(os.environ["TEST_RING"])

    def _all(self):
        return json.loads(self.path.read_text()) if self.path.exists() else {}

    def get_password(self, service, username):
        return self._all().get(service + "|" + username)

    def set_password(self, service, username, password):
        self.path.write_text(json.dumps({**self._all(), service + "|" + username: password}))

    def delete_password(self, service, username):
        kept = self._all()
        kept.pop(service + "|" + username, None)
        self.path.write_text(json.dumps(kept))
"""


@pytest.fixture
def roots(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """One setting for each kind of root."""
    (tmp_path / "kms.py").write_text(KMS)
    (tmp_path / "ring_of_a_test.py").write_text(RING)
    phrase = tmp_path / "phrase"
    phrase.write_bytes(PASSPHRASE + b"\n")
    phrase.chmod(0o600)
    monkeypatch.setenv("TEST_RING", str(tmp_path / "ring.json"))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("keyring.core._keyring_backend", importlib.import_module("ring_of_a_test").Ring())
    monkeypatch.delitem(sys.modules, "ring_of_a_test")
    return {
        "file": "file",
        "file elsewhere": f"file:{tmp_path / 'elsewhere' / 'my.key'}",
        "keyring": "keyring",
        "command": f"command:{sys.executable} {tmp_path / 'kms.py'}",
        "passphrase": f"passphrase:{phrase}",
    }


async def test_the_key_moves_from_any_root_to_any_other(tmp_path: Path, roots: dict[str, str]) -> None:
    state = tmp_path / "state"
    order = ["file", "keyring", "command", "passphrase", "file elsewhere", "keyring", "file"]
    async with opened(state, roots[order[0]]) as vault:
        await vault.put("a.b", b"value")
    for before, after in itertools.pairwise(order):
        async with opened(state, roots[before]) as vault:
            assert revealed(vault, "a.b") == b"value", (before, vault.problem)
            await vault.rotate()
            await vault.rotate(roots[after])
            assert revealed(vault, "a.b") == b"value"
        if roots[before].partition(":")[0] != roots[after].partition(":")[0]:
            async with opened(state, roots[before]) as vault:
                with pytest.raises(SecretsError, match="LOCKGATE_VAULT_KEY"):
                    vault.get("a.b")
    async with opened(state, "") as vault:
        assert revealed(vault, "a.b") == b"value"
    assert len(json.loads((state / "vault.key").read_bytes())) == 1
    kept = json.loads((tmp_path / "ring.json").read_text())
    assert [name for name in kept if not name.endswith((":keys", ":mark"))] == []
    assert b"value" not in (tmp_path / "ring.json").read_bytes()


async def test_an_old_database_and_an_old_key_are_both_needed(tmp_path: Path) -> None:
    """After a rotation the old key is gone, so an older copy of the database is of no use."""
    async with opened(tmp_path) as vault:
        await vault.put("a.b", b"value")
    old, old_key = (tmp_path / "lockgate.db").read_bytes(), (tmp_path / "vault.key").read_bytes()
    async with opened(tmp_path) as vault:
        await vault.rotate()
        assert (tmp_path / "vault.key").read_bytes() != old_key
    (tmp_path / "lockgate.db").write_bytes(old)
    for name in ("lockgate.db-wal", "lockgate.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    async with opened(tmp_path) as vault:
        with pytest.raises(SecretsError):
            await vault.accept()


async def test_a_wrong_passphrase_is_said_to_be_one(tmp_path: Path, roots: dict[str, str]) -> None:
    state = tmp_path / "state"
    async with opened(state, roots["passphrase"]) as vault:
        await vault.put("a.b", b"value")
    (tmp_path / "phrase").write_bytes(b"another long passphrase")
    async with opened(state, roots["passphrase"]) as vault:
        with pytest.raises(SecretsError, match="the passphrase does not open the vault") as caught:
            vault.get("a.b")
        assert "another long" not in str(caught.value)
    (tmp_path / "phrase").write_bytes(b"short")
    async with opened(tmp_path / "new", roots["passphrase"]) as vault:
        with pytest.raises(SecretsError, match="at least 12 characters"):
            await vault.put("a.b", b"value")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
async def test_a_key_file_that_others_can_read_is_not_used(tmp_path: Path, mode: int) -> None:
    async with opened(tmp_path) as vault:
        await vault.put("a.b", b"value")
    (tmp_path / "vault.key").chmod(mode)
    async with opened(tmp_path) as vault:
        with pytest.raises(SecretsError, match="chmod 600"):
            vault.get("a.b")


async def test_a_key_file_behind_a_link_is_not_used(tmp_path: Path) -> None:
    async with opened(tmp_path) as vault:
        await vault.put("a.b", b"value")
    (tmp_path / "vault.key").rename(tmp_path / "real.key")
    (tmp_path / "vault.key").symlink_to("real.key")
    async with opened(tmp_path) as vault:
        with pytest.raises(SecretsError, match="cannot be read"):
            vault.get("a.b")


@pytest.mark.parametrize("program", ["false", "true", "cat /dev/zero | head -c 100000 #", "does-not-exist"])
async def test_a_command_that_fails_keeps_the_vault_shut(tmp_path: Path, program: str) -> None:
    async with opened(tmp_path, f"command:sh -c '{program}'" if " " in program else f"command:{program}") as vault:
        with pytest.raises(SecretsError):
            await vault.put("a.b", b"value")
        assert vault.get("a.b") is None


@pytest.mark.parametrize("choice", ["nonsense", "command:", "keyring:x", "file /x", "env:X"])
def test_other_roots_are_refused(tmp_path: Path, choice: str) -> None:
    with pytest.raises(SettingsError, match="LOCKGATE_VAULT_KEY"):
        open_root(choice, tmp_path)


def test_a_keyring_that_keeps_nothing_or_plain_text_is_not_taken(tmp_path: Path) -> None:
    """In a process of its own: the keyring library chooses its backend once."""
    code = (
        "from gateway.vault.roots import open_root; from pathlib import Path; import sys\n"
        "print(open_root('', Path(sys.argv[1])).kind)\n"
        "try: open_root('keyring', Path(sys.argv[1])).create()\n"
        "except Exception as exc: print(type(exc).__name__, exc)\n"
    )
    for backend in ("keyring.backends.null.Keyring", "keyring.backends.fail.Keyring"):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            env={**os.environ, "PYTHON_KEYRING_BACKEND": backend, "PYTHONPATH": str(Path(__file__).parents[2])},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[0] == "file", done
        assert "there is no keyring that keeps secrets encrypted" in done.stdout


# -- backups -------------------------------------------------------------------------------------


async def test_a_backup_brings_back_secrets_and_no_tokens(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    async with opened(tmp_path / "one") as vault:
        await vault.put("a.b", b"first")
        await vault.put("a.c", b"mine", "alice")
        await vault.put("there", b"a token", "alice", "token")
        assert await back_up(vault, path, PASSPHRASE) == 2
        await restore(vault, path, PASSPHRASE)  # nothing was written since
        await vault.put("a.d", b"later")
        with pytest.raises(SecretsError, match="is older than the vault"):
            await restore(vault, path, PASSPHRASE)
        generation = vault.generation
        await restore(vault, path, PASSPHRASE, replace=True)
        assert vault.generation > generation
        assert [one.name for one in vault.kept()] == ["a.b", "a.c"]
        assert vault.value(Place("token", "alice", "there")) == b"a token"
        await vault.rotate()
    async with opened(tmp_path / "two") as vault:  # another machine, with another key
        assert (await restore(vault, path, PASSPHRASE)).secrets == 2
        assert revealed(vault, "a.c", "alice") == b"mine"
        with pytest.raises(SecretsError, match="of another one"):
            await restore(vault, path, PASSPHRASE)


@pytest.mark.sec("SEC-064")
async def test_a_backup_that_was_changed_restores_nothing(tmp_path: Path) -> None:
    path = tmp_path / "backup"
    async with opened(tmp_path / "one") as vault:
        await vault.put("a.b", b"first")
        await back_up(vault, path, PASSPHRASE)
        with pytest.raises(SecretsError, match="does not open"):
            await restore(vault, path, b"some other passphrase", replace=True)
        whole = json.loads(path.read_bytes())
        changed = [
            {**whole, "key": {**whole["key"], "salt": "00" * 16}},
            {**whole, "key": {**whole["key"], "memory_kib": 10**9}},
            {**whole, "format": "x"},
            {**whole, "sealed": base64.b64encode(base64.b64decode(whole["sealed"])[:-1]).decode()},
            {},
        ]
        for one in changed:
            path.write_text(json.dumps(one))
            with pytest.raises(SecretsError):
                await restore(vault, path, PASSPHRASE, replace=True)
        assert revealed(vault, "a.b") == b"first"
        with pytest.raises(SecretsError, match="at least 12"):
            await back_up(vault, path, b"short")


async def test_two_gateways_on_one_database_see_each_others_writes(tmp_path: Path) -> None:
    changed: list[Place] = []
    async with opened(tmp_path) as one, opened(tmp_path) as other:
        other.watchers.append(changed.extend)
        await one.put("a.b", b"first")
        await other.refresh()
        assert revealed(other, "a.b") == b"first"
        assert changed == [Place("secret", "", "a.b")]
        await other.put("a.c", b"second")  # on top of what the first wrote
        await one.put("a.d", b"third")
        await one.refresh()
        assert [kept.name for kept in one.kept()] == ["a.b", "a.c", "a.d"]
        await one.rotate()
        await other.refresh()
        assert revealed(other, "a.d") == b"third"


async def test_a_database_that_does_not_answer_for_a_moment_takes_nothing_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(tmp_path) as one, opened(tmp_path) as other:
        await one.put("a.b", b"first")
        await other.refresh()
        await one.put("a.b", b"second")
        told: list[frozenset[Place]] = []
        other.watchers.append(told.append)

        async def silent(connection: object) -> None:
            raise OperationalError("SELECT", {}, Exception("gone"))

        with monkeypatch.context() as patch:
            patch.setattr(other, "_load", silent)
            with pytest.raises(OperationalError):
                await other.refresh()
        assert (other.problem, told, revealed(other, "a.b")) == ("", [], b"first")
        await other.refresh()
        assert revealed(other, "a.b") == b"second"


async def test_a_mark_that_cannot_be_written_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened(tmp_path) as vault:
        await vault.put("a.b", b"value")
    mark = tmp_path / "vault.mark"
    id, _, _ = mark.read_text().partition(" ")
    mark.write_text(f"{id} 0")

    def full(self: object, mark: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(FileRoot, "write_mark", full)
    async with opened(tmp_path) as vault:
        assert (vault.problem, revealed(vault, "a.b")) == ("", b"value")
