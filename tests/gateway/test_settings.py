"""Settings: read from the environment, and refused with every problem at once."""

from dataclasses import fields, replace
from pathlib import Path

import pytest

from gateway.errors import SettingsError
from gateway.settings import Settings, read_settings


def refusal(environ: dict[str, str]) -> str:
    with pytest.raises(SettingsError) as caught:
        read_settings(environ).check()
    return str(caught.value)


def test_without_variables_the_defaults_and_xdg_folders_hold() -> None:
    settings = read_settings({"HOME": "/home/me", "PATH": "/bin", "LOCKGATEX": "1"}).check()
    assert settings.state_dir == Path("/home/me/.local/state/lockgate")
    assert settings.cache_dir == Path("/home/me/.cache/lockgate")
    assert settings.url == "http://127.0.0.1:8811"
    settings = read_settings({"XDG_STATE_HOME": "/s", "XDG_CACHE_HOME": "/c", "DOCKER_HOST": "tcp://127.0.0.1:1"})
    assert (settings.state_dir, settings.cache_dir) == (Path("/s/lockgate"), Path("/c/lockgate"))
    assert settings.docker_host == "tcp://127.0.0.1:1"


def test_every_setting_is_a_variable(tmp_path: Path) -> None:
    environ = {
        "LOCKGATE_HOST": "::1",
        "LOCKGATE_PORT": "9000",
        "LOCKGATE_STATE_DIR": "/a",
        "LOCKGATE_CACHE_DIR": "/b",
        "LOCKGATE_CATALOG": "/c.yaml",
        "LOCKGATE_RULES": "/r.yaml",
        "LOCKGATE_PROFILE": "p",
        "LOCKGATE_RUNTIME": "process",
        "LOCKGATE_DOCKER_HOST": "unix:///d",
        "LOCKGATE_DOCKER_CERT_PATH": "/e",
        "LOCKGATE_MODEL": "m",
        "LOCKGATE_CONTEXT_TOKENS": "4096",
        "LOCKGATE_PAGE_SIZE": "10",
        "LOCKGATE_MAX_SERVERS": "3",
        "LOCKGATE_CONTAINER_RUNTIME": "runsc",
        "LOCKGATE_EGRESS_NETWORK": "out",
        "LOCKGATE_MOUNT_ROOTS": f"{tmp_path}/a:{tmp_path}/b",
        "LOCKGATE_SECRETS_DIR": "/s",
        "LOCKGATE_DATABASE": "postgresql://somebody@database/lockgate",
        "LOCKGATE_AUTH": "/auth.toml",
        "LOCKGATE_PUBLIC_URL": "https://gateway.example",
        "LOCKGATE_TLS_CERT": "/cert.pem",
        "LOCKGATE_TLS_KEY": "/key.pem",
        "LOCKGATE_VAULT_KEY": "file:/vault.key",
        "LOCKGATE_STORES": "vault",
        "LOCKGATE_MODEL_MEMORY_MB": "2000",
        "LOCKGATE_MODEL_IDLE_S": "60",
        "LOCKGATE_GPU_LAYERS": "0",
    }
    settings = read_settings(environ).check()
    assert settings == Settings(
        "::1",
        9000,
        Path("/a"),
        Path("/b"),
        Path("/c.yaml"),
        Path("/r.yaml"),
        "p",
        "process",
        "unix:///d",
        Path("/e"),
        "m",
        4096,
        10,
        3,
        "runsc",
        "out",
        (tmp_path / "a", tmp_path / "b"),
        Path("/s"),
        "postgresql://somebody@database/lockgate",
        "/auth.toml",
        "https://gateway.example",
        Path("/cert.pem"),
        Path("/key.pem"),
        "file:/vault.key",
        "vault",
        2000,
        60,
        0,
    )
    assert settings.url == "https://[::1]:9000"
    assert {f"LOCKGATE_{field.name.upper()}" for field in fields(Settings)} == set(environ)
    assert len(environ) < 30


def test_an_unknown_variable_is_refused_with_a_suggestion() -> None:
    text = refusal({"LOCKGATE_PROT": "1", "LOCKGATE_ZZZZ": "1"})
    assert "LOCKGATE_PROT is not a setting; did you mean LOCKGATE_PORT?" in text
    assert "LOCKGATE_ZZZZ is not a setting" in text


def test_all_problems_are_reported_at_once() -> None:
    text = refusal({"LOCKGATE_PORT": "x", "LOCKGATE_RUNTIME": "podman", "LOCKGATE_PAGE": "1", "LOCKGATE_STATE_DIR": ""})
    assert len(text.splitlines()) == 4
    text = refusal({"LOCKGATE_HOST": "0.0.0.0", "LOCKGATE_PORT": "70000", "LOCKGATE_PAGE_SIZE": "0"})
    assert all(name in text for name in ("LOCKGATE_HOST", "LOCKGATE_PORT", "LOCKGATE_PAGE_SIZE"))


@pytest.mark.sec("SEC-004")
@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "", "192.168.0.1", "example.com", "localhost.evil", "127.0.0.1.evil", "1"]
)
def test_listening_beyond_this_machine_is_refused(host: str) -> None:
    with pytest.raises(SettingsError, match="loopback only"):
        replace(Settings(), host=host).check()


@pytest.mark.sec("SEC-004")
def test_beyond_this_machine_callers_sign_in_and_tokens_are_not_sent_in_the_clear() -> None:
    pair = {"tls_cert": Path("/c"), "tls_key": Path("/k")}
    proxy = {"public_url": "https://gateway.example"}
    for host in ("0.0.0.0", "192.168.0.1", "127.0.0.1"):
        for auth in ("off", "keys", "/auth.toml"):
            for changes in ({}, pair, proxy, {"public_url": "http://gateway.example"}, {"tls_cert": Path("/c")}):
                alone = host == "127.0.0.1" and not changes.get("public_url")
                safe = alone or (auth != "off" and changes in (pair, proxy))
                wanted = replace(Settings(), host=host, auth=auth, **changes)
                if safe and changes != {"tls_cert": Path("/c")}:
                    wanted.check()
                else:
                    with pytest.raises(SettingsError):
                        wanted.check()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1", "localhost"])
def test_listening_on_loopback_is_fine(host: str) -> None:
    assert replace(Settings(), host=host).check().host == host


@pytest.mark.parametrize("text", ["-1", "1.5", " 80", "0x50", "", "²", "9" * 5000, "65536"])
def test_a_port_that_is_none_is_refused(text: str) -> None:
    assert "LOCKGATE_PORT" in refusal({"LOCKGATE_PORT": text})
