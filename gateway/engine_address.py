"""Where the Docker Engine is: DOCKER_HOST, a Docker context, or a socket in one of the usual places.

Opens no connection; it reads the same variables and files as the `docker` command, in the same order."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from gateway.errors import SettingsError

DEFAULT_SOCKET: Final = "/var/run/docker.sock"
SCHEMES: Final = ("unix", "tcp", "ssh")
MAX_FILE_BYTES: Final = 1024 * 1024
DEFAULT_CONTEXT: Final = "default"


@dataclass(frozen=True)
class EngineAddress:
    """How to reach an engine.

    certificates: a folder with ca.pem, cert.pem and key.pem; TCP is then spoken over TLS, both sides checked.
    """

    url: str = f"unix://{DEFAULT_SOCKET}"
    certificates: Path | None = None

    def __str__(self) -> str:
        return self.url


def find_engine(environ: Mapping[str, str]) -> EngineAddress:
    """The engine that the `docker` command would use; without one, a rootless or Podman socket that is there.

    Raises:
        SettingsError: what the variables or the context name is not usable.
    """
    if host := environ.get("DOCKER_HOST"):
        return checked(EngineAddress(host, _certificates(environ)))
    config = Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME", "/")) / ".docker")
    name = environ.get("DOCKER_CONTEXT") or _current_context(config)
    if name and name != DEFAULT_CONTEXT:
        return checked(_context(config, name))
    for path in _usual_sockets(environ):
        if _is_socket(path):
            return EngineAddress(f"unix://{path}")
    return EngineAddress()


def checked(address: EngineAddress) -> EngineAddress:
    """The same address, if its scheme is known and its parts are there.

    Raises:
        SettingsError: it cannot be used; says what to write instead.
    """
    try:
        parts = urlsplit(address.url)
        host, _ = parts.hostname, parts.port
    except ValueError as exc:
        raise SettingsError(f"the engine's address {address.url!r} is no URL") from exc
    if parts.scheme not in SCHEMES:
        wanted = "unix:///path, tcp://host:port or ssh://user@host"
        raise SettingsError(f"the engine's address {address.url!r} is none of {wanted}")
    if parts.scheme == "unix" and not parts.path.startswith("/"):
        raise SettingsError(f"the engine's address {address.url!r} names no absolute path")
    if parts.scheme in ("tcp", "ssh") and not host:
        raise SettingsError(f"the engine's address {address.url!r} names no host")
    # ssh must read neither as one of its options: a name that begins with "-" would be one.
    if parts.scheme == "ssh" and (
        parts.password or any(name.startswith("-") for name in (host, parts.username) if name)
    ):
        raise SettingsError("the engine's ssh address holds a user, a host and a port, nothing else")
    return address


def _certificates(environ: Mapping[str, str]) -> Path | None:
    """As the `docker` command: TLS is asked for by DOCKER_TLS_VERIFY or DOCKER_CERT_PATH."""
    folder = environ.get("DOCKER_CERT_PATH")
    if folder:
        return Path(folder).expanduser()
    if environ.get("DOCKER_TLS_VERIFY"):
        return Path(environ.get("DOCKER_CONFIG") or Path(environ.get("HOME", "/")) / ".docker")
    return None


def _current_context(config: Path) -> str:
    path = config / "config.json"
    if not path.is_file():
        return ""
    name = _read_json(path).get("currentContext", "")
    return name if isinstance(name, str) else ""


def _context(config: Path, name: str) -> EngineAddress:
    """A context of ~/.docker/contexts: its metadata and certificates lie in folders named by a hash of its name."""
    id = hashlib.sha256(name.encode()).hexdigest()
    path = config / "contexts" / "meta" / id / "meta.json"
    if not path.is_file():
        raise SettingsError(f"there is no Docker context {name!r} ({path} is missing); see: docker context ls")
    endpoints = _read_json(path).get("Endpoints")
    endpoint = endpoints.get("docker") if isinstance(endpoints, dict) else None
    host = endpoint.get("Host") if isinstance(endpoint, dict) else None
    if not isinstance(endpoint, dict) or not isinstance(host, str) or not host:
        raise SettingsError(f"the Docker context {name!r} names no host for the engine ({path})")
    certificates = config / "contexts" / "tls" / id / "docker"
    has_certificates = certificates.is_dir()
    if host.startswith("tcp:") and has_certificates and endpoint.get("SkipTLSVerify"):
        raise SettingsError(
            f"the Docker context {name!r} skips the check of the engine's certificate; add its CA to the context"
        )
    return EngineAddress(host, certificates if has_certificates else None)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(MAX_FILE_BYTES))
    except (OSError, ValueError) as exc:
        raise SettingsError(f"{path} cannot be read as JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise SettingsError(f"{path} holds no JSON object")
    return value


def _usual_sockets(environ: Mapping[str, str]) -> Iterator[str]:
    """The engine of the system first, then the user's own, then Podman's compatible one."""
    yield DEFAULT_SOCKET
    runtime = environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    yield f"{runtime}/docker.sock"
    if home := environ.get("HOME"):
        yield f"{home}/.docker/run/docker.sock"
    yield f"{runtime}/podman/podman.sock"
    if os.getuid() == 0:
        yield "/run/podman/podman.sock"


def _is_socket(path: str) -> bool:
    try:
        return stat.S_ISSOCK(Path(path).stat().st_mode)
    except OSError:
        return False
