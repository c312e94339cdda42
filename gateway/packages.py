"""Servers from PyPI and npm, installed on this machine, each with its own dependencies.

Knows no containers and starts no server: the process runtime runs what is installed here, inside its sandbox.

Nothing of a package runs while it is installed: wheels only from PyPI, no install scripts from npm. What has
to be built from source is left to a container image.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio.to_thread

from gateway.errors import PackageError
from gateway.filelock import file_lock, lock_if_free
from gateway.indexes import PackageIndexes, current_indexes, installer_environment
from gateway.installer import InstallerFailed, run_installer
from gateway.nodejs import MINIMUM_NODE, NODE_VERSION, private_node, system_node

if TYPE_CHECKING:
    from catalog import Package

Progress = Callable[[str], None]
Run = Callable[[Sequence[str], Mapping[str, str]], Awaitable[None]]
"""Runs one installer program, with that environment, to its end."""

LAYOUT_VERSION: Final = 1
"""Raised when an installation looks different on disk: older ones are then left alone and made anew."""
INSTALL_TIMEOUT_S: Final = 900.0
_COMPLETE: Final = ".complete"
"""Written last. A folder without it is half made, whoever left it, and is thrown away."""


@dataclass(frozen=True)
class InstalledPackage:
    """A package on disk, ready to run once `path_dirs` come first on PATH."""

    root: Path
    path_dirs: tuple[Path, ...]
    env: Mapping[str, str]


class PackageStore:
    """Packages below one folder, each installed once. Several processes may share the folder."""

    def __init__(self, cache_dir: Path) -> None:
        self._root = cache_dir / "packages"
        self._indexes: PackageIndexes | None = None

    async def ensure(self, package: Package, *, progress: Progress) -> InstalledPackage:
        """The installed package, installing it first where needed. Cancelling stops the installer.

        Raises:
            PackageError: it could not be installed; says what the installer said and what can be done.
        """
        await self._require_debian(package)
        if package.ecosystem == "pypi":
            folder = (
                self._root / "pypi" / _folder_name(package, _platform(sys.implementation.cache_tag, sys.base_prefix))
            )
            installed = InstalledPackage(folder, (folder / "venv/bin",), {"PYTHONDONTWRITEBYTECODE": "1"})
            make = self._install_pypi
        else:
            node = await self._node(progress)
            folder = self._root / "npm" / _folder_name(package, _platform("node"))
            installed = InstalledPackage(folder, (folder / "node_modules/.bin", node), {})
            make = self._install_npm

        async def install(run: Run) -> None:
            progress(f"installing {package.name} {package.version} from {package.ecosystem}")
            await make(package, installed, run)

        try:
            await self._once(folder, install, progress)
        except InstallerFailed as exc:
            name = f"{package.name} {package.version} ({package.ecosystem})"
            raise PackageError(f"{name} could not be installed. {_advice(package)}: {exc}") from exc
        return installed

    async def _once(self, folder: Path, install: Callable[[Run], Awaitable[None]], progress: Progress) -> None:
        """Fill the folder, unless that was done before.

        Virtual environments cannot be moved, so everything is installed in its final place, under a lock; writing
        the marker takes the part of a rename.
        """
        async with file_lock(folder.with_name(f"{folder.name}.lock")) as lock:
            if _is_usable(folder):
                return

            async def run(argv: Sequence[str], env: Mapping[str, str]) -> None:
                await run_installer(
                    argv,
                    env=env,
                    cwd=folder,
                    on_line=lambda line: None if line.startswith((" ", "Using ")) else progress(line),
                    timeout_s=INSTALL_TIMEOUT_S,
                    inherit=(lock,),
                )

            await anyio.to_thread.run_sync(_empty, folder)
            await install(run)
            (folder / _COMPLETE).touch()

    async def _install_pypi(self, package: Package, installed: InstalledPackage, run: Run) -> None:
        venv = installed.root / "venv"
        env = await self._pypi_environment()
        if uv := find_uv():
            make = [uv, "venv", "--quiet", "--no-config", "--no-project", "--python", sys.executable]
        else:
            make = [sys.executable, "-m", "venv"]
        await run([*make, str(venv)], env)
        wanted = [f"{package.name}=={package.version}", *package.pins]
        await run([*_pip_install(str(venv / "bin/python")), "--", *wanted], env)

    async def _install_npm(self, package: Package, installed: InstalledPackage, run: Run) -> None:
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--no-package-lock"]
        options += ["--omit=dev", "--loglevel=error", "--prefix", str(installed.root)]
        env = installer_environment(os.environ)
        env["PATH"] = os.pathsep.join(filter(None, [str(installed.path_dirs[-1]), env.get("PATH")]))
        await run(["npm", "install", *options, "--", f"{package.name}@{package.version}", *package.pins], env)

    async def _node(self, progress: Progress) -> Path:
        """The folder that node and npm are in: the machine's, or a copy made here."""
        if found := await system_node():
            return found
        folder = self._root / "node" / f"{NODE_VERSION}-{os.uname().machine}"

        async def install(run: Run) -> None:
            async def wheel(target: Path, requirement: str) -> None:
                argv = [*_pip_install(sys.executable), "--no-deps", "--target", str(target), "--", requirement]
                await run(argv, await self._pypi_environment())

            progress(f"installing Node.js {NODE_VERSION} from pypi, for servers from npm")
            await private_node(folder, wheel)

        try:
            await self._once(folder, install, progress)
        except InstallerFailed as exc:
            raise PackageError(
                f"servers from npm need Node.js {MINIMUM_NODE} or later with npm, which is not on PATH; install it, "
                f"or run the server in a container. A copy from PyPI could not be had either: {exc}"
            ) from exc
        return folder / "bin"

    async def _pypi_environment(self) -> dict[str, str]:
        if self._indexes is None:
            self._indexes = await anyio.to_thread.run_sync(current_indexes)
        quiet = {"UV_LINK_MODE": "copy", "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never"}
        return self._indexes.for_uv() | installer_environment(os.environ) | quiet

    async def _require_debian(self, package: Package) -> None:
        """Debian packages cannot be installed for one server alone: they have to be there."""
        if not package.apt or shutil.which("dpkg-query") is None:
            return
        query = ["dpkg-query", "--show", "--showformat", "${Package} ${db:Status-Status}\\n", *package.apt]
        done = await anyio.run_process(query, check=False, stderr=None)
        present = {line.split()[0] for line in done.stdout.decode().splitlines() if line.endswith(" installed")}
        if missing := sorted(set(package.apt) - present):
            raise PackageError(
                f"{package.name} needs programs of this machine: apt-get install {' '.join(missing)} "
                "(or run it in a container: the image is built with them)"
            )


def remove_unfinished(cache_dir: Path) -> None:
    """Remove what killed installers left half made. Whoever is at work holds a lock, and so do its programs."""
    for lock in (cache_dir / "packages").glob("*/*.lock"):
        folder = lock.with_suffix("")
        if folder.is_dir() and not (folder / _COMPLETE).is_file():
            with lock_if_free(lock) as is_free:
                if is_free and not (folder / _COMPLETE).is_file():
                    shutil.rmtree(folder, ignore_errors=True)


def find_uv() -> str | None:
    """The uv program: the one installed beside this Python, else one on PATH."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.is_file() else shutil.which("uv")


def _pip_install(python: str) -> list[str]:
    """The command that installs wheels for that Python: nothing is built, so nothing of a package runs."""
    if uv := find_uv():
        return [uv, "pip", "install", "--python", python, "--no-build", "--compile-bytecode"]
    quiet = ["--quiet", "--progress-bar", "off", "--disable-pip-version-check"]
    return [python, "-m", "pip", "install", "--only-binary", ":all:", *quiet]


def _is_usable(folder: Path) -> bool:
    """Complete, and the Python that a virtual environment points to is still there."""
    python = folder / "venv/bin/python"
    return (folder / _COMPLETE).is_file() and (not python.is_symlink() or python.exists())


def _empty(folder: Path) -> None:
    if folder.exists():
        (folder / _COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(folder)
    folder.mkdir(parents=True)


def _folder_name(package: Package, platform: str) -> str:
    parts = [LAYOUT_VERSION, platform, package.name, package.version, sorted(package.pins)]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", package.name).strip("-.")
    return f"{slug}-{package.version}-{digest}"


def _platform(*interpreter: str | None) -> str:
    return "-".join([*filter(None, interpreter), os.uname().machine])


def _advice(package: Package) -> str:
    if package.ecosystem == "npm":
        return "Check the version in the catalog and that npm reaches its registry (`npm ping`)"
    return (
        "Check the version in the catalog and that pip reaches its index; "
        "a package without wheels can only run in a container"
    )
