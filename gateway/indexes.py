"""Where this machine installs packages from: the user's own index, certificate and proxy settings.

Knows no package and installs nothing; it reads what pip, npm and the environment say.
"""

from __future__ import annotations

import ast
import os
import shlex
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

SETTINGS_TIMEOUT_S: Final = 20.0
"""`pip config list` and `npm config get` read a few files; a cold npm on a slow disk takes seconds."""

_CA_VARIABLES: Final = ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS")
_PROXY_VARIABLES: Final = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
_PASSED_PREFIXES: Final = ("PIP_", "UV_", "NPM_CONFIG_", "npm_config_", "SSL_CERT_", "LC_")
_PASSED_NAMES: Final = frozenset(
    {"PATH", "HOME", "LANG", "TMPDIR", "USER", "LOGNAME", "REQUESTS_CA_BUNDLE", "NODE_EXTRA_CA_CERTS"}
    | {"XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME"}
    | {name for lower in _PROXY_VARIABLES for name in (lower, lower.upper())}
)


@dataclass(frozen=True)
class PackageIndexes:
    """The settings that decide where packages come from. May contain logins: never log or store them."""

    pip_index: str | None = None
    pip_extra_indexes: tuple[str, ...] = ()
    pip_trusted_hosts: tuple[str, ...] = ()
    npm_registry: str | None = None
    npm_login_lines: tuple[str, ...] = ()
    """Lines of the user's .npmrc that name registries of scopes and the logins for them."""
    ca_bundle: Path | None = None
    proxies: Mapping[str, str] = field(default_factory=dict)

    def for_uv(self) -> dict[str, str]:
        """uv does not read pip's settings: the same, in its variables.

        Folders among the extra indexes are left out: uv would take what they have of a package for all there is.
        """
        settings = {
            "UV_DEFAULT_INDEX": self.pip_index or "",
            "UV_INDEX": " ".join(filter(_over_network, self.pip_extra_indexes)),
            "UV_INSECURE_HOST": " ".join(self.pip_trusted_hosts),
        }
        return {name: value for name, value in settings.items() if value}

    def for_container(self, ca_path: str) -> dict[str, str]:
        """Environment of an installer in a container, where `ca_path` holds a copy of the certificates.

        Indexes that are folders of this machine do not exist there and are left out.
        """
        index = _over_network(self.pip_index)
        settings = self.for_uv() | {
            "UV_DEFAULT_INDEX": index,
            "PIP_INDEX_URL": index,
            "PIP_EXTRA_INDEX_URL": " ".join(filter(_over_network, self.pip_extra_indexes)),
            "PIP_TRUSTED_HOST": " ".join(self.pip_trusted_hosts),
            "NPM_CONFIG_REGISTRY": self.npm_registry or "",
        }
        if self.ca_bundle is not None:
            settings |= dict.fromkeys((*_CA_VARIABLES, "NPM_CONFIG_CAFILE"), ca_path)
        settings |= self.proxies
        return {name: value for name, value in settings.items() if value}


def read_indexes(environ: Mapping[str, str]) -> PackageIndexes:
    """Read the settings in force: the environment, then pip's and npm's own files. Runs both tools: slow."""
    pip = _pip_settings(environ)
    npm = shutil.which("npm", path=environ.get("PATH"))
    registry = _ask([npm, "config", "get", "registry"], environ).strip() if npm else ""
    npmrc = _ask([npm, "config", "get", "userconfig"], environ).strip() if npm else ""
    proxies = {
        name: value for lower in _PROXY_VARIABLES for name in (lower, lower.upper()) if (value := environ.get(name))
    }
    return PackageIndexes(
        pip_index=environ.get("UV_DEFAULT_INDEX") or pip.get("index-url"),
        pip_extra_indexes=tuple(pip.get("extra-index-url", "").split()),
        pip_trusted_hosts=tuple(pip.get("trusted-host", "").split()),
        npm_registry=registry if registry.startswith(("http://", "https://")) else None,
        npm_login_lines=_npm_login_lines(Path(npmrc)) if npmrc else (),
        ca_bundle=_ca_bundle(environ, pip.get("cert")),
        proxies=proxies,
    )


def installer_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What an installer on this machine gets to see of the gateway's environment: no secrets among it."""
    return {
        name: value for name, value in environ.items() if name in _PASSED_NAMES or name.startswith(_PASSED_PREFIXES)
    }


def _over_network(url: str | None) -> str:
    return url if url and url.startswith(("http://", "https://")) else ""


def _ask(argv: Iterable[str], environ: Mapping[str, str]) -> str:
    try:
        done = subprocess.run(
            list(argv),
            env=installer_environment(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SETTINGS_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _pip_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """pip's settings, with its precedence: environment, then [install], then site and user, then global."""
    rank = {"global": 0, "user": 1, "site": 1, "install": 2, ":env:": 3}
    found: dict[str, tuple[int, str]] = {}
    for line in _ask([sys.executable, "-m", "pip", "config", "list"], environ).splitlines():
        key, _, quoted = line.partition("=")
        section, _, name = key.rpartition(".")
        try:
            value = ast.literal_eval(quoted)
        except (ValueError, SyntaxError):
            continue
        if section in rank and isinstance(value, str) and rank[section] >= found.get(name, (-1, ""))[0]:
            found[name] = (rank[section], value)
    settings = {name: value for name, (_, value) in found.items()}
    for variable, name in (
        ("PIP_INDEX_URL", "index-url"),
        ("PIP_EXTRA_INDEX_URL", "extra-index-url"),
        ("PIP_TRUSTED_HOST", "trusted-host"),
    ):
        if value := environ.get(variable):
            settings[name] = value
    return settings


def _npm_login_lines(npmrc: Path) -> tuple[str, ...]:
    try:
        lines = npmrc.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return ()
    kept = (line.strip() for line in lines)
    return tuple(line for line in kept if line.startswith("//") or (line.startswith("@") and ":registry" in line))


def _ca_bundle(environ: Mapping[str, str], pip_cert: str | None) -> Path | None:
    candidates = [environ.get(name) for name in _CA_VARIABLES]
    candidates += [pip_cert, "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"]
    candidates += [ssl.get_default_verify_paths().cafile]
    for candidate in candidates:
        if candidate and Path(candidate).is_file():
            return Path(candidate)
    return None


def as_shell(settings: Mapping[str, str]) -> str:
    """The settings as a file for the shell's `.` command."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in settings.items())


def current_indexes() -> PackageIndexes:
    """The settings in force for this process."""
    return read_indexes(os.environ)
