"""The file that says how callers sign in: read strictly, with every problem at once."""

from pathlib import Path

import pytest

from gateway.auth.configuration import Configuration, read_configuration
from gateway.errors import SettingsError

GOOD = """
accounts = true
client_hosts = ["clients.example"]

[[issuers]]
name = "corp"
issuer = "https://id.example/tenant"
audiences = ["lockgate"]
algorithms = ["RS256"]
groups = { "1" = "staff" }

[login]
name = "home"
issuer = "https://login.example"
client_id = "lockgate"
"""


def write(folder: Path, text: str) -> str:
    path = folder / "auth.toml"
    path.write_text(text)
    return str(path)


def refusal(folder: Path, text: str) -> str:
    with pytest.raises(SettingsError) as caught:
        read_configuration(write(folder, text))
    return str(caught.value)


def test_words_and_files(tmp_path: Path) -> None:
    assert read_configuration("off") is None
    assert read_configuration("keys") == Configuration()
    assert read_configuration("accounts") == Configuration(accounts=True)
    found = read_configuration(write(tmp_path, GOOD))
    assert found is not None
    assert (found.issuers[0].issuer, found.login and found.login.name) == ("https://id.example/tenant", "home")
    assert read_configuration(write(tmp_path, "")) == Configuration()


def test_mistakes_are_refused_with_their_place(tmp_path: Path) -> None:
    assert "acounts" in refusal(tmp_path, "acounts = true")
    assert "is not TOML" in refusal(tmp_path, "accounts = true\naccounts = false")
    assert "is not TOML" in refusal(tmp_path, "{")
    for bad in ("HS256", "none", "RS1"):
        assert "algorithms" in refusal(tmp_path, GOOD.replace('"RS256"', f'"{bad}"'))
    assert "algorithms" in refusal(tmp_path, GOOD.replace('["RS256"]', "[]"))
    for url in (
        "http://id.example",
        "https://id.example?x",
        "https://u:p@id.example",
        "id.example",
        "https://id.example#x",
    ):
        assert "issuers.0.issuer" in refusal(tmp_path, GOOD.replace("https://id.example/tenant", url))
    for name in ("local", "user", "key", "client"):
        assert "reserved" in refusal(tmp_path, GOOD.replace('"corp"', f'"{name}"'))
    assert "of its own" in refusal(tmp_path, GOOD.replace('"home"', '"corp"'))
    assert "needs accounts" in refusal(tmp_path, GOOD.replace("accounts = true", "accounts = false"))
    two = refusal(tmp_path, GOOD.replace('"corp"', '"Corp!"').replace('"RS256"', '"HS256"'))
    assert "issuers.0.name" in two
    assert "issuers.0.algorithms" in two
    with pytest.raises(SettingsError, match="cannot be read"):
        read_configuration(str(tmp_path / "none.toml"))
    with pytest.raises(SettingsError, match="is over"):
        read_configuration(write(tmp_path, "#" * 300_000))
