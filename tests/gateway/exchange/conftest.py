"""Registries, catalogue files and keys that the tests of this folder share.

Knows no command."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner, Result

from gateway.cli import app
from tests.catalog.files import BOX, document
from tests.gateway.registries import PASSWORD, USER, TestRegistry, pem, private_pem, registry

PROFILES = """\
profiles:
  home:
    title: Home
    servers: [box]
"""


@pytest.fixture(scope="session")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestRegistry]:
    with registry(tmp_path_factory.mktemp("registry")) as one:
        yield one


@pytest.fixture(scope="session")
def key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: ec.EllipticCurvePrivateKey) -> Path:
    """An empty home and working folder, with a key pair in it."""
    for name in ("CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    for name in ("LOCKGATE_CATALOG", "DOCKER_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sign.key").write_bytes(private_pem(key))
    (tmp_path / "sign.pub").write_text(pem(key))
    (tmp_path / "team.yaml").write_text("# ours\n" + document({"box": BOX}, PROFILES))
    return tmp_path


def sign_in(home: Path, host: str) -> None:
    """As `docker login` does without a credential helper."""
    (home / ".docker").mkdir(exist_ok=True)
    login = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (home / ".docker" / "config.json").write_text(json.dumps({"auths": {host: {"auth": login}}}))


def lockgate(*words: str, input: str | None = None) -> Result:
    return CliRunner().invoke(app, list(words), input=input)


def done(*words: str, input: str | None = None) -> str:
    """What a command printed on both outputs; it must succeed."""
    result = lockgate(*words, input=input)
    assert result.exit_code == 0, f"{result.output}\n{result.exception!r}"
    return result.output


def refused(*words: str) -> str:
    """Why a command did not succeed."""
    result = lockgate(*words)
    assert result.exit_code != 0, result.output
    return f"{result.output}{result.exception}"
