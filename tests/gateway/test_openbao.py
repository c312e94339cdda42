"""Secrets in OpenBao: a real one, with TLS, AppRole, namespaces and a seal; and one that is in trouble."""

import urllib.error
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from gateway.errors import SecretsError, SettingsError
from gateway.openbao import BaoSecrets
from gateway.secrets import EnvironmentSecrets, variable
from gateway.stores import Find
from tests.gateway import bao
from tests.servers import kv2

VALUE = 's3cr3t/va+lue"\u00e9 of brave'
NOTHING = kv2.Reply(404, {"errors": []})
MOUNT = kv2.Reply(200, {"data": {"path": "secret/", "type": "kv", "options": {"version": "2"}}})
FOUND = kv2.Reply(200, {"data": {"data": {"api_key": VALUE}, "metadata": {"version": 1}}})
BUSY = kv2.Reply(429, {"errors": ["too many"]}, (("Retry-After", "3"),))
BROKEN = kv2.Reply(502, b"<html>Bad Gateway")


@pytest.fixture(scope="module")
def server() -> Iterator[bao.Bao]:
    with bao.running() as server:
        server.put("brave", api_key=VALUE, number=7, empty="")
        server.put("lock/gate/brave", api_key="deeper")
        server.put("brave", mount="deep/kv", api_key="of the deep mount")
        server.put("old", api_key=VALUE)
        server.call("DELETE", "secret/data/old")
        yield server


@pytest.fixture
def engine() -> Iterator[kv2.Engine]:
    with kv2.serving() as engine:
        yield engine


def holding(**secrets: str) -> Find:
    """A store before it, with these secrets of `openbao`."""
    return EnvironmentSecrets({variable(f"openbao.{name}"): value for name, value in secrets.items()}).get


def read(store: BaoSecrets, name: str) -> str | None:
    found = store.get(name)
    return found.reveal().decode() if found is not None else None


def test_a_token_reads_fields_and_folders_and_mounts_with_slashes(server: bao.Bao) -> None:
    token = holding(token=bao.ROOT)
    store = BaoSecrets(server.store, token)
    assert read(store, "brave.api_key") == VALUE
    for absent in ("brave.other", "brave.empty", "other.api_key", "old.api_key"):
        assert store.get(absent) is None, absent
    assert store.get("brave.api_key", "alice") is None
    with pytest.raises(SecretsError, match="is no text"):
        store.get("brave.number")
    assert read(BaoSecrets(f"{server.address}/secret/lock/gate?ca={server.ca}", token), "brave.api_key") == "deeper"
    deep = BaoSecrets(f"{server.address}/deep/kv/?ca={server.ca}", token)
    assert read(deep, "brave.api_key") == "of the deep mount"


def test_what_is_no_engine_of_version_2_is_not_taken_for_an_empty_one(server: bao.Bao) -> None:
    token = holding(token=bao.ROOT)
    for path in ("first", "sys", "cubbyhole"):
        with pytest.raises(SecretsError, match=f"{path} at 127.0.0.1 is no secrets engine KV, version 2"):
            BaoSecrets(f"{server.address}/{path}?ca={server.ca}", token).get("brave.api_key")
    with pytest.raises(SecretsError, match="there is no secrets engine at nothing"):
        BaoSecrets(f"{server.address}/nothing?ca={server.ca}", token).get("brave.api_key")


def test_a_token_that_is_wrong_or_may_not_read_is_refused_and_never_shown(server: bao.Bao) -> None:
    nobody = server.call("POST", "auth/token/create", {"policies": ["default"]})["auth"]["client_token"]
    for token in ("s.wrong", nobody):
        with pytest.raises(SecretsError, match=r"answered 403 when asked for brave\.api_key: the token") as caught:
            BaoSecrets(server.store, holding(token=token)).get("brave.api_key")
        assert token not in str(caught.value)
    with pytest.raises(SecretsError, match=r"lockgate secret set openbao\.token"):
        BaoSecrets(server.store, holding()).get("brave.api_key")
    with pytest.raises(SecretsError, match="is no token") as caught:
        BaoSecrets(server.store, holding(token="two\r\nlines")).get("brave.api_key")
    assert "lines" not in str(caught.value)


def test_a_role_logs_in_once_and_again_when_its_token_ends(server: bao.Bao) -> None:
    role, secret = server.role("gateway")
    asked: list[str] = []
    find = holding(role_id=role, secret_id=secret)
    store = BaoSecrets(f"{server.store}&approle=approle", lambda name: (asked.append(name), find(name))[1])
    assert read(store, "brave.api_key") == VALUE
    assert read(store, "lock/gate/brave.api_key") == "deeper"
    assert asked == ["openbao.role_id", "openbao.secret_id"]
    tokens = server.call("LIST", "auth/token/accessors")["data"]["keys"]
    for accessor in tokens:
        held = server.call("POST", "auth/token/lookup-accessor", {"accessor": accessor})["data"]
        if held["path"] == "auth/approle/login":
            server.call("POST", "auth/token/revoke-accessor", {"accessor": accessor})
    assert read(store, "brave.api_key") == VALUE  # its token was revoked: a new one
    assert asked == ["openbao.role_id", "openbao.secret_id"] * 2


def test_a_role_that_may_not_read_uses_up_one_secret_id_and_no_more(server: bao.Bao) -> None:
    role, secret = server.role("narrow", secret_id_num_uses=1)
    store = BaoSecrets(
        f"{server.address}/deep/kv?ca={server.ca}&approle=approle", holding(role_id=role, secret_id=secret)
    )
    for _ in range(3):
        with pytest.raises(SecretsError, match=r"answered 403 when asked for brave\.api_key: its role may not read"):
            store.get("brave.api_key")


def test_a_login_that_is_refused_says_what_to_look_at(server: bao.Bao) -> None:
    role, secret = server.role("once", secret_id_num_uses=1)
    find = holding(role_id=role, secret_id=secret)
    assert read(BaoSecrets(f"{server.store}&approle=approle", find), "brave.api_key") == VALUE
    for store in (
        BaoSecrets(f"{server.store}&approle=approle", find),  # used up
        BaoSecrets(f"{server.store}&approle=approle", holding(role_id="wrong", secret_id=secret)),
        BaoSecrets(f"{server.store}&approle=elsewhere", find),
    ):
        with pytest.raises(SecretsError, match="refused the login") as caught:
            store.get("brave.api_key")
        assert secret not in str(caught.value)
        assert role not in str(caught.value)
    with pytest.raises(SecretsError, match=r"lockgate secret set openbao\.role_id"):
        BaoSecrets(f"{server.store}&approle=approle", holding(token=bao.ROOT)).get("brave.api_key")


def test_a_namespace_is_a_place_of_its_own(server: bao.Bao) -> None:
    server.call("POST", "sys/namespaces/team", {})
    server.call("POST", "sys/mounts/secret", {"type": "kv", "options": {"version": "2"}}, namespace="team")
    server.put("brave", namespace="team", api_key="of the team")
    token = holding(token=bao.ROOT)
    assert read(BaoSecrets(f"{server.store}&namespace=team", token), "brave.api_key") == "of the team"
    assert read(BaoSecrets(server.store, token), "brave.api_key") == VALUE
    with pytest.raises(SecretsError, match="there is no namespace other"):
        BaoSecrets(f"{server.store}&namespace=other", token).get("brave.api_key")


def test_only_the_authority_that_was_named_is_trusted(server: bao.Bao) -> None:
    with pytest.raises(SecretsError, match=r"127\.0\.0\.1 is not trusted: .*; name its authority: …\?ca="):
        BaoSecrets(f"{server.address}/secret", holding(token=bao.ROOT)).get("brave.api_key")


def test_a_sealed_server_says_so_at_once_and_serves_again_when_it_is_unsealed(server: bao.Bao) -> None:
    pauses: list[float] = []
    store = BaoSecrets(server.store, holding(token=bao.ROOT), pauses.append)
    with server.sealed(), pytest.raises(SecretsError, match=r"answered 503 .*: it is sealed; unseal it"):
        store.get("brave.api_key")
    assert pauses == []
    assert read(store, "brave.api_key") == VALUE


def test_a_server_with_a_rate_limit_is_asked_again(server: bao.Bao) -> None:
    token = holding(token=bao.ROOT)
    store = BaoSecrets(server.store, token, lambda seconds: (pauses.append(seconds), lift())[1])
    pauses: list[float] = []
    assert read(store, "brave.api_key") == VALUE
    limit = {"path": "secret/", "rate": 0.001, "interval": "1h", "block_interval": "1h"}

    def lift() -> None:
        server.call("DELETE", "sys/quotas/rate-limit/slow")

    server.call("POST", "sys/quotas/rate-limit/slow", limit)
    try:
        server.call("GET", "secret/data/brave")  # the one that may pass
        with pytest.raises(urllib.error.HTTPError, match="429"):
            server.call("GET", "secret/data/brave")
        assert read(store, "brave.api_key") == VALUE
        assert len(pauses) == 1
    finally:
        lift()


@pytest.mark.parametrize(
    "bad", [BROKEN, BUSY, kv2.Reply(500, {"errors": ["x"]}), kv2.Reply(412, {"errors": ["index"]})]
)
def test_bad_moments_are_waited_for_and_bad_times_are_reported(engine: kv2.Engine, bad: kv2.Reply) -> None:
    pauses: list[float] = []
    store = BaoSecrets(f"{engine.url}/secret", holding(token="t"), pauses.append)
    engine.replies = [MOUNT, bad, bad, FOUND]
    assert read(store, "brave.api_key") == VALUE
    assert pauses == ([3.0, 3.0] if bad is BUSY else [0.25, 1.0])
    engine.replies = [bad]
    engine.asked.clear()
    with pytest.raises(SecretsError, match=rf"answered {bad.status} when asked for brave\.api_key"):
        store.get("brave.api_key")
    assert engine.asked == ["/v1/secret/data/brave"] * 4


def test_a_redirect_and_nonsense_are_not_followed_or_believed(engine: kv2.Engine) -> None:
    store = BaoSecrets(f"{engine.url}/secret", holding(token="t"))
    elsewhere = f"{engine.url}/v1/secret/data/other"
    nonsense: Mapping[str, kv2.Reply] = {
        "sends elsewhere": kv2.Reply(307, None, (("Location", elsewhere),)),
        "KV engine, version 2": kv2.Reply(200, b"{not json"),
        "did not answer with a secret": kv2.Reply(200, {"data": None}),
        "more than a secret may hold": kv2.Reply(200, b" " * 2_000_000),
    }
    for said, reply in nonsense.items():
        engine.replies = [MOUNT, reply]
        engine.asked.clear()
        with pytest.raises(SecretsError, match=said):
            BaoSecrets(f"{engine.url}/secret", holding(token="t")).get("brave.api_key")
        assert "/v1/secret/data/other" not in engine.asked
    engine.replies = [NOTHING]  # a server that does not tell of its engines
    assert store.get("brave.api_key") is None


def test_a_server_that_is_not_there_is_said_to_be() -> None:
    pauses: list[float] = []
    with pytest.raises(SecretsError, match=r"127\.0\.0\.1 does not answer \(ConnectionRefusedError\)"):
        BaoSecrets("http://127.0.0.1:1/secret", holding(token="t"), pauses.append).get("brave.api_key")
    assert len(pauses) == 3


@pytest.mark.parametrize(
    "url",
    [
        "http://192.0.2.1/secret",
        "https://user@host/secret",
        "https://host",
        "https://host/secret#part",
        "https://host:port/secret",
        "https://host/secret?token=x",
        "https://host/secret?namespace=",
        "https://host/secret?namespace=a&namespace=b",
        "https://host/secret?namespace=a%0D%0Ab",
        "https://host/secret?ca=/nowhere/ca.pem",
        "ftp://host/secret",
    ],
)
def test_an_address_or_option_that_will_not_do_is_refused_at_the_start(url: str) -> None:
    with pytest.raises(SettingsError, match="LOCKGATE_STORES"):
        BaoSecrets(url, holding(token="t"))


def test_an_authority_that_is_no_certificate_is_refused_at_the_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(SettingsError, match="cannot be read as certificates"):
        BaoSecrets(f"https://host/secret?ca={tmp_path / 'ca.pem'}", holding(token="t"))
