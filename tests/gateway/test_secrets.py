"""Secrets before they reach a server: values that hide themselves, stores, and redaction."""

import base64
import copy
import json
import logging
import os
import pickle
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalog import Entry, Secret
from gateway.errors import SecretsError
from gateway.redaction import MARK, KnownValues, Redactor, forms
from gateway.secrets import EnvironmentSecrets, FolderSecrets, Secrets, SecretValue, variable
from gateway.serverlog import ServerLog

VALUE = b's3cr3t/va+lue"x'


def entry(id: str, *names: str, required: bool = True) -> Entry:
    secrets = tuple(Secret(name=name, env=f"V{index}", required=required) for index, name in enumerate(names))
    return Entry(id=id, title="x", description="x", image="x:1", secrets=secrets)


# -- values --------------------------------------------------------------------------------------


def test_a_secret_value_hides_itself(caplog: pytest.LogCaptureFixture) -> None:
    secret = SecretValue("a.b", VALUE)
    logging.getLogger("x").warning("%s %r", secret, [secret])
    for shown in (
        repr(secret),
        str(secret),
        f"{secret}",
        f"{secret:>40}",
        f"{[secret]}",
        f"{ValueError(secret)!r}",
        caplog.text,
    ):
        assert "s3cr3t" not in shown
    for attempt in (pickle.dumps, copy.deepcopy, copy.copy, json.dumps, hash, lambda one: one == secret, vars):
        with pytest.raises(TypeError) as caught:
            attempt(secret)
        assert "s3cr3t" not in str(caught.value)
    assert secret.reveal() == VALUE


# -- stores --------------------------------------------------------------------------------------


def test_secrets_are_taken_out_of_the_environment() -> None:
    environ = {"LOCKGATE_SECRET_BRAVE__API_KEY": "abc", "HOME": "/"}
    store = EnvironmentSecrets(environ)
    assert environ == {"HOME": "/"}
    found = store.get("brave.api_key")
    assert found is not None
    assert found.reveal() == b"abc"
    assert store.get("brave.other") is None


def test_a_folder_of_secrets_is_read_only_while_it_is_private(tmp_path: Path) -> None:
    folder = tmp_path / "secrets"
    store = FolderSecrets(folder)
    assert store.get("a.b") is None
    folder.mkdir(mode=0o700)
    path = folder / "a.b"
    path.write_bytes(VALUE + b"\n")
    path.chmod(0o600)
    found = store.get("a.b")
    assert found is not None
    assert found.reveal() == VALUE
    for mode in (0o640, 0o604, 0o660, 0o666, 0o620):
        path.chmod(mode)
        with pytest.raises(SecretsError, match="chmod 600"):
            store.get("a.b")
    path.chmod(0o600)
    for mode in (0o750, 0o705, 0o777):
        folder.chmod(mode)
        with pytest.raises(SecretsError, match="chmod 700"):
            store.get("a.b")
    folder.chmod(0o700)
    path.rename(folder / "a.c")
    path.symlink_to("a.c")
    with pytest.raises(SecretsError, match="cannot be read"):
        store.get("a.b")
    path.unlink()
    os.mkfifo(path, 0o600)
    with pytest.raises(SecretsError, match="no regular file"):
        store.get("a.b")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file away")
def test_a_secret_of_another_user_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "a.b"
    path.write_bytes(VALUE)
    path.chmod(0o600)
    os.chown(path, 12345, 12345)
    with pytest.raises(SecretsError, match="another user"):
        FolderSecrets(tmp_path).get("a.b")


@pytest.mark.parametrize("value", [b"", b"x" * 70_000, b"a\0b", b"\xff\xfe\xfd"])
def test_a_value_that_no_variable_could_hold_is_refused_and_not_shown(tmp_path: Path, value: bytes) -> None:
    tmp_path.chmod(0o700)
    path = tmp_path / "a.b"
    path.write_bytes(value)
    path.chmod(0o600)
    with pytest.raises(SecretsError) as caught:
        FolderSecrets(tmp_path).get("a.b")
    assert len(str(caught.value)) < 200
    assert caught.value.__cause__ is None


@pytest.mark.sec("SEC-063")
def test_a_missing_secret_is_named_with_every_way_to_set_it(tmp_path: Path) -> None:
    secrets = Secrets((EnvironmentSecrets({}), FolderSecrets(tmp_path / "s")))
    with pytest.raises(SecretsError) as caught:
        secrets.resolve(entry("brave", "brave.api_key", "brave.more"))
    text = str(caught.value)
    for part in ("brave.api_key", "brave.more", "LOCKGATE_SECRET_BRAVE__API_KEY", f"{tmp_path}/s/brave.api_key"):
        assert part in text
    assert secrets.resolve(entry("brave", "brave.api_key", required=False)) == {}


@pytest.mark.sec("SEC-060")
def test_an_entry_gets_its_own_secrets_whatever_names_it_uses() -> None:
    environ = {variable(f"{owner}.key"): owner for owner in ("alpha", "beta")}
    secrets = Secrets([EnvironmentSecrets(environ)])
    assert [one.reveal() for one in secrets.resolve(entry("alpha", "alpha.key")).values()] == [b"alpha"]
    tricks = (
        "beta.key", "*.key", "alpha.*", "alpha.key.beta.key", "alpha.key/../beta.key", "../beta.key", "{{beta.key}}",
        "alpha.{{beta.key}}", "${beta.key}", "alpha.beta.key", "ALPHA.key", "alpha .key", "alpha.key\n", "beta", "",
        "alpha..key", "alpha./beta.key", "аlpha.key", "alpha.key\0", "alpha.KEY", "alpha.%62eta",
    )  # fmt: skip
    for name in tricks:
        with pytest.raises(ValueError, match=r".+"):
            entry("alpha", name)


@pytest.mark.sec("SEC-060")
def test_two_secrets_that_would_share_a_variable_stop_the_gateway() -> None:
    with pytest.raises(SecretsError, match=r"a-b\.c and a_b\.c"):
        Secrets((), ["a-b.c", "x.y", "a_b.c"])


@pytest.mark.sec("SEC-061")
@given(st.text(), st.text())
def test_values_are_never_read_again(template: str, name: str) -> None:
    """There is no template language: what looks like one stays as it is, in the catalog and in a secret."""
    written = "{{" + template + "}}${" + name + "}$(x)%s{0.__class__}"
    value = SecretValue("a.b", written.encode("utf-8", "surrogatepass"))
    assert value.reveal().decode("utf-8", "surrogatepass") == written
    if "\0" not in written:
        one = Entry(id="a", title="x", description="x", image="x:1", env={"A": written}, args=(written,))
        assert one.env["A"] == written
        assert one.args == (written,)


# -- redaction -----------------------------------------------------------------------------------


@pytest.mark.sec("SEC-059")
@given(st.binary(min_size=12, max_size=60), st.binary(max_size=9), st.binary(max_size=9))
def test_a_value_is_hidden_in_every_form(value: bytes, before: bytes, after: bytes) -> None:
    redactor = Redactor([SecretValue("a.b", value)])
    text = value.decode("utf-8", "surrogateescape")
    said = [
        before + value + after,
        json.dumps(text).encode(),
        json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogateescape"),
        value.hex().encode(),
        value.hex().upper().encode(),
        quote(value, safe="").encode(),
    ]
    for one in said:
        assert MARK + b"a.b]" in redactor.clean(one)
    for encoded in (base64.b64encode(before + value + after), base64.urlsafe_b64encode(before + value + after)):
        assert MARK in redactor.clean(encoded)
    innocent = b"nothing to see"
    assert redactor.clean(innocent) is innocent


def test_what_is_hidden_leaves_json_that_can_be_read() -> None:
    redactor = Redactor([SecretValue("a.b", VALUE)])
    message = json.dumps({"content": [{"type": "text", "text": VALUE.decode() + " and " + VALUE.hex()}]}).encode()
    assert json.loads(redactor.clean(message))["content"][0]["text"].count("[hidden secret: a.b]") == 2


def test_a_short_secret_is_named_and_not_searched_for() -> None:
    redactor = Redactor([SecretValue("a.b", b"1234567")])
    assert redactor.too_short == ["a.b"]
    assert redactor.clean(b"1234567") == b"1234567"
    log = ServerLog()
    log.hide(redactor)
    assert "the secret a.b is too short" in log.lines()[0].text


@pytest.mark.parametrize("size", [1, 7, 1999, 4000])
@pytest.mark.sec("SEC-059")
def test_a_log_hides_a_value_however_it_is_cut(size: int) -> None:
    log = ServerLog()
    log.hides = Redactor([SecretValue("a.b", b"canary-0123456789")])
    data = (b"x" * 1995 + b"canary-0123456789") * 5 + b"\ncanary-0123456789\n"
    for start in range(0, len(data), size):
        log.stderr(data[start : start + size])
    log.stray(b"y" * 1990 + b"canary-0123456789")
    text = "".join(line.text for line in log.lines())
    assert not re.search("canary|0123|6789", text)


def test_a_thousand_known_values_are_each_found_in_every_form() -> None:
    known = KnownValues()
    values = [SecretValue(f"secret-{number}", f'va"lue/{number:04}+of many'.encode()) for number in range(1000)]
    known.add(values)
    for secret in values[::97]:
        for form in forms(secret.reveal()):
            cleaned = known.clean(b"before " + form + b" after")
            assert MARK + secret.name.encode() + b"]" in cleaned
            assert secret.reveal() not in cleaned
    line = b"nothing of these"
    assert known.clean(line) is line


def test_of_values_within_each_other_the_longest_is_hidden_whole() -> None:
    redactor = Redactor([SecretValue("short", b"12345678"), SecretValue("long", b"1234567890abc")])
    assert redactor.clean(b"<1234567890abc> <12345678>") == b"<" + MARK + b"long]> <" + MARK + b"short]>"
