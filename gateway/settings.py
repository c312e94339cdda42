"""Settings: where the gateway listens, where its state lives, what it serves by default.

The one reader of the environment. Knows nothing of what the values are used for."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final, Literal, get_args
from urllib.parse import urlsplit

from catalog.reference import is_loopback
from gateway.auth.urls import check_url
from gateway.choice import read_choice
from gateway.engine_address import EngineAddress, find_engine
from gateway.errors import SettingsError
from gateway.mounts import check_root
from gateway.secrets import VARIABLE_PREFIX

RuntimeChoice = Literal["auto", "docker", "process"]
PREFIX: Final = "LOCKGATE_"
DEFAULT_PORT: Final = 8811
AUTH_WORDS: Final = ("off", "keys", "accounts")
"""Everything else that `LOCKGATE_AUTH` says is the path of a file."""
MIN_CONTEXT_TOKENS: Final = 512
"""Less does not hold one tool and one question."""


_NUMBERS: Final = frozenset(
    ("port", "context_tokens", "page_size", "max_servers", "model_memory_mb", "model_idle_s", "gpu_layers")
)


@dataclass(frozen=True)
class Settings:
    """Every setting, each also an environment variable: `state_dir` is `LOCKGATE_STATE_DIR`."""

    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    state_dir: Path = Path()
    cache_dir: Path = Path()
    catalog: Path | None = None
    """A catalog file in place of the shipped one."""
    rules: Path | None = None
    """What may run of any catalog, by whoever is responsible for the machine; `rules.yaml` in the state folder if not
    set and there."""
    profile: str = "starter"
    """The profile served at /mcp; if not set, the one that was chosen with `lockgate profile use`."""
    runtime: RuntimeChoice = "auto"
    """`auto` takes containers where an engine answers, else local processes."""
    docker_host: str = "unix:///var/run/docker.sock"
    """Without one: DOCKER_HOST, the Docker context in use, or the socket of a rootless engine or Podman."""
    docker_cert_path: Path | None = None
    """A folder with ca.pem, cert.pem and key.pem, for an engine at tcp://."""
    model: str = "qwen2.5-coder:0.5b"
    context_tokens: int = 8192
    page_size: int = 250
    max_servers: int = 64
    """Containers and processes of servers that run at once; remote servers are not counted."""
    container_runtime: str = ""
    """The engine's runtime for containers whose entry names none, such as runsc; empty is the engine's default."""
    egress_network: str = "bridge"
    """The engine's network through which servers with listed hosts reach the internet, by their filters."""
    mount_roots: tuple[Path, ...] = ()
    """Folders of this machine below which entries may have folders mounted; none without it."""
    secrets_dir: Path | None = None
    """Where secrets lie as files, one each; `secrets` in the state folder if not set."""
    database: str = ""
    """An SQLAlchemy URL: `postgresql://user:password@host/name`; empty is `lockgate.db` in the state folder."""

    auth: str = "off"
    """How callers sign in: `off` on loopback, `keys`, `accounts`, or a TOML file that says more."""
    public_url: str = ""
    """The https:// address that clients use, where it is not the one listened on: that of a proxy in front."""
    tls_cert: Path | None = None
    """A certificate with its chain, as PEM; the gateway then serves https itself."""
    tls_key: Path | None = None
    vault_key: str = ""
    """What keeps the vault's key: keyring, file:/path, command:PROGRAM or passphrase:/path; empty is the keyring where
    there is one, else a file in the state folder."""
    stores: str = ""
    """Where secrets come from, in this order, with semicolons between; empty is `vault;environment;folder`."""
    model_memory_mb: int = 0
    """What all loaded models may use together; 0 is three quarters of the machine's memory."""
    model_idle_s: int = 300
    """How long a model stays loaded after its last request."""
    gpu_layers: int = -1
    """Layers of a model to put on a GPU, where the build has one; -1 is all."""

    @property
    def engine(self) -> EngineAddress:
        return EngineAddress(self.docker_host, self.docker_cert_path)

    @property
    def catalog_lock(self) -> Path:
        """Where tags are pinned: beside a catalog of one's own, for the shipped one in the state folder."""
        return self.state_dir / "catalog.lock" if self.catalog is None else self.catalog.with_suffix(".lock")

    @property
    def models_dir(self) -> Path:
        """The store of local models."""
        return self.cache_dir / "models"

    @property
    def transcripts_dir(self) -> Path:
        """What agents did, a file a run."""
        return self.state_dir / "transcripts"

    @property
    def agents_dir(self) -> Path:
        """Where agents are defined, a file each."""
        return self.state_dir / "agents" if self.catalog is None else self.catalog.parent / "agents"

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.state_dir / 'lockgate.db'}"

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)

    @property
    def url(self) -> str:
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """How programs on this machine reach the gateway at a port."""
        host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.host, self.host)  # noqa: S104 - not to be bound
        scheme = "http" if self.tls_cert is None else "https"
        return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"

    def check(self) -> Settings:
        """The same settings, if they may be used.

        Raises:
            SettingsError: listening beyond this machine without sign-in or TLS, or values out of range, all at once.
        """
        problems = list(self._check_front())
        if not 0 <= self.port <= 65535:
            problems.append(f"{PREFIX}PORT={self.port}: a port is between 0 and 65535")
        if self.page_size < 1:
            problems.append(f"{PREFIX}PAGE_SIZE={self.page_size}: a page holds at least 1 item")
        if self.max_servers < 1:
            problems.append(f"{PREFIX}MAX_SERVERS={self.max_servers}: at least 1 server must be allowed to run")
        if self.context_tokens < MIN_CONTEXT_TOKENS:
            problems.append(f"{PREFIX}CONTEXT_TOKENS={self.context_tokens}: must be at least {MIN_CONTEXT_TOKENS}")
        if problems:
            raise SettingsError("\n".join(problems))
        return self

    def _check_front(self) -> Iterator[str]:
        if not self.is_loopback and self.auth == "off":
            yield (
                f"{PREFIX}HOST={self.host}: callers are not asked to sign in, so the gateway listens on loopback only; "
                f"use 127.0.0.1 or ::1, or set {PREFIX}AUTH"
            )
        if self.public_url:
            try:
                if urlsplit(check_url(self.public_url)).path:
                    yield f"{PREFIX}PUBLIC_URL={self.public_url}: ends with the host or port, without a path"
            except ValueError as exc:
                yield f"{PREFIX}PUBLIC_URL={self.public_url}: {exc}"
            if self.auth == "off":
                yield f"{PREFIX}PUBLIC_URL: others can reach it there, so callers must sign in; set {PREFIX}AUTH"
        if not self.is_loopback and self.tls_cert is None and not self.public_url.startswith("https://"):
            yield (
                f"{PREFIX}HOST={self.host}: tokens would cross the network in the clear; set {PREFIX}TLS_CERT and "
                f"{PREFIX}TLS_KEY, or {PREFIX}PUBLIC_URL to the https:// address of a proxy in front"
            )
        if (self.tls_cert is None) != (self.tls_key is None):
            yield f"{PREFIX}TLS_CERT and {PREFIX}TLS_KEY belong together"


def read_settings(environ: Mapping[str, str]) -> Settings:
    """Settings from the environment and the XDG base directories.

    Raises:
        SettingsError: unknown or unusable variables, all of them at once.
    """
    home = Path(environ.get("HOME", "/"))
    engine = EngineAddress() if environ.get(f"{PREFIX}DOCKER_HOST") else find_engine(environ)
    settings = Settings(
        state_dir=Path(environ.get("XDG_STATE_HOME") or home / ".local/state") / "lockgate",
        cache_dir=Path(environ.get("XDG_CACHE_HOME") or home / ".cache") / "lockgate",
        docker_host=engine.url,
        docker_cert_path=engine.certificates,
    )
    known = {field.name for field in fields(Settings)}
    changes: dict[str, object] = {}
    problems = []
    for variable in sorted(environ):
        if not variable.startswith(PREFIX) or variable.startswith(VARIABLE_PREFIX):
            continue
        name = variable.removeprefix(PREFIX).lower()
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {PREFIX}{near[0].upper()}?" if near else ""
            problems.append(f"{variable} is not a setting{hint}")
            continue
        try:
            changes[name] = _parsed(name, environ[variable])
        except ValueError as exc:
            problems.append(f"{variable}: {exc}")
    if problems:
        raise SettingsError("\n".join(problems))
    if "profile" not in changes and (chosen := read_choice(Path(str(changes.get("state_dir", settings.state_dir))))):
        changes["profile"] = chosen
    return replace(settings, **changes)  # type: ignore[arg-type]  # each value was parsed for its field


def _parsed(name: str, text: str) -> object:
    match name:
        case (
            "port" | "context_tokens" | "page_size" | "max_servers" | "model_memory_mb" | "model_idle_s" | "gpu_layers"
        ):
            if not text.removeprefix("-" if name == "gpu_layers" else "").isdigit():
                raise ValueError(f"{text!r} is not a whole number")
            return int(text)
        case "mount_roots":
            return tuple(check_root(Path(part).expanduser()) for part in text.split(os.pathsep) if part)
        case (
            "state_dir"
            | "cache_dir"
            | "catalog"
            | "rules"
            | "docker_cert_path"
            | "secrets_dir"
            | "tls_cert"
            | "tls_key"
        ):
            if not text:
                raise ValueError("the path is empty")
            return Path(text).expanduser().absolute()
        case "runtime":
            if text not in get_args(RuntimeChoice):
                raise ValueError(f"{text!r} is not one of {', '.join(get_args(RuntimeChoice))}")
            return text
        case "auth" if text not in AUTH_WORDS:
            return str(Path(text).expanduser().absolute())
        case _:
            return text
