"""Where the engine is found: variables, contexts and sockets, as the `docker` command finds it. Opens nothing."""

import hashlib
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from gateway import engine_address
from gateway.engine_address import EngineAddress, checked, find_engine
from gateway.errors import SettingsError
from gateway.ssh_bridge import ssh_command


def context(home: Path, name: str, endpoint: dict[str, Any], *, certificates: bool = False) -> Path:
    """Write a context as `docker context create` does; the folder of its certificates."""
    id = hashlib.sha256(name.encode()).hexdigest()
    meta = home / ".docker/contexts/meta" / id
    meta.mkdir(parents=True)
    (meta / "meta.json").write_text(json.dumps({"Name": name, "Metadata": {}, "Endpoints": {"docker": endpoint}}))
    tls = home / ".docker/contexts/tls" / id / "docker"
    if certificates:
        tls.mkdir(parents=True)
    return tls


def environ(home: Path, **more: str) -> dict[str, str]:
    return {"HOME": str(home), "XDG_RUNTIME_DIR": str(home / "run"), **more}


@pytest.fixture(autouse=True)
def no_system_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This machine's own engine must not decide what is found."""
    monkeypatch.setattr(engine_address, "DEFAULT_SOCKET", str(tmp_path / "system.sock"))


def test_docker_host_comes_first(tmp_path: Path) -> None:
    context(tmp_path, "work", {"Host": "tcp://10.0.0.1:1"})
    found = find_engine(environ(tmp_path, DOCKER_HOST="unix:///x.sock", DOCKER_CONTEXT="work"))
    assert found == EngineAddress("unix:///x.sock")


def test_certificates_go_with_docker_host(tmp_path: Path) -> None:
    host = {"DOCKER_HOST": "tcp://engine.example:2376"}
    assert find_engine(environ(tmp_path, **host)).certificates is None
    assert find_engine(environ(tmp_path, **host, DOCKER_CERT_PATH="/certs")).certificates == Path("/certs")
    assert find_engine(environ(tmp_path, **host, DOCKER_TLS_VERIFY="1")).certificates == tmp_path / ".docker"


def test_a_context_is_taken_by_variable_then_from_the_config_file(tmp_path: Path) -> None:
    tls = context(tmp_path, "far", {"Host": "tcp://engine.example:2376", "SkipTLSVerify": False}, certificates=True)
    context(tmp_path, "near", {"Host": "unix:///near.sock"})
    (tmp_path / ".docker/config.json").write_text('{"currentContext": "near"}')
    assert find_engine(environ(tmp_path)) == EngineAddress("unix:///near.sock")
    assert find_engine(environ(tmp_path, DOCKER_CONTEXT="far")) == EngineAddress("tcp://engine.example:2376", tls)
    moved = environ(tmp_path, DOCKER_CONTEXT="near", DOCKER_CONFIG=str(tmp_path / ".docker"), HOME="/nowhere")
    assert find_engine(moved) == EngineAddress("unix:///near.sock")


def test_a_context_that_is_not_there_or_skips_the_check_of_certificates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="no Docker context 'gone'"):
        find_engine(environ(tmp_path, DOCKER_CONTEXT="gone"))
    context(tmp_path, "loose", {"Host": "tcp://x:1", "SkipTLSVerify": True}, certificates=True)
    with pytest.raises(SettingsError, match="skips the check"):
        find_engine(environ(tmp_path, DOCKER_CONTEXT="loose"))
    context(tmp_path, "empty", {})
    with pytest.raises(SettingsError, match="names no host"):
        find_engine(environ(tmp_path, DOCKER_CONTEXT="empty"))


def test_without_either_the_sockets_are_tried_in_order(tmp_path: Path) -> None:
    places = ["run/podman/podman.sock", ".docker/run/docker.sock", "run/docker.sock", "system.sock"]
    for place in places:
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / place))
            assert find_engine(environ(tmp_path)) == EngineAddress(f"unix://{tmp_path / place}")


def test_the_default_context_means_the_usual_sockets(tmp_path: Path) -> None:
    assert find_engine(environ(tmp_path, DOCKER_CONTEXT="default")).url.endswith(".sock")


@pytest.mark.parametrize(
    "url",
    [
        *("docker.sock", "npipe:////./pipe/x", "http://x:1", "unix://x.sock", "tcp://", "ssh://", "tcp://x:99999"),
        *("ssh://-oProxyCommand=x", "ssh://-oProxyCommand=x@host", "ssh://me:password@host"),
    ],
)
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        checked(EngineAddress(url))
    assert "password" not in str(caught.value)


def test_ssh_is_asked_for_the_engines_stdio_and_never_for_a_password() -> None:
    argv = ssh_command("ssh://me@far.example:2222/run/user/1000/docker.sock")
    assert argv[0] == "ssh"
    assert "BatchMode=yes" in argv
    assert argv[argv.index("-l") + 1] == "me"
    assert argv[argv.index("-p") + 1] == "2222"
    end = argv[argv.index("--") + 1 :]
    assert end == ["far.example", "docker", "--host", "unix:///run/user/1000/docker.sock", "system", "dial-stdio"]
    assert ssh_command("ssh://far/tmp/a;reboot")[-3] == "'unix:///tmp/a;reboot'"
