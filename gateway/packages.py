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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio.to_thread

from gateway.errors import PackageError
from gateway.filelock import file_lock
from gateway.indexes import PackageIndexes, current_indexes, installer_environment
from gateway.installer import InstallerFailed, run_installer

if TYPE_CHECKING:
    from catalog import Package

Progress = Callable[[str], None]

LAYOUT_VERSION: Final = 1
"""Raised when an installation looks different on disk: older ones are then left alone and made anew."""
INSTALL_TIMEOUT_S: Final = 900.0
PROBE_TIMEOUT_S: Final = 20.0
MINIMUM_NODE: Final = 20
"""What most npm servers of the catalog ask for in their `engines`."""
_COMPLETE: Final = ".complete"
"""Written last. A folder without it is half made, whoever left it, and is thrown away."""


@dataclass(frozen=True)
class InstalledPackage:
    """A package on disk, ready to run.

    path_dirs: to be put first on PATH; readable: folders outside root that it cannot run without.
    """

    root: Path
    path_dirs: tuple[Path, ...]
    env: Mapping[str, str]
    readable: tuple[Path, ...] = field(default=())


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
        install = self._install_pypi if package.ecosystem == "pypi" else self._install_npm
        platform = await _node_platform() if package.ecosystem == "npm" else _python_platform()
        folder = self._root / package.ecosystem / _folder_name(package, platform)
        # Virtual environments cannot be moved, so it is installed in its final place, under a lock; writing
        # the marker takes the part of a rename.
        async with file_lock(folder.with_name(f"{folder.name}.lock")) as lock:
            installed = _describe(package, folder)
            if not _is_usable(installed):
                await anyio.to_thread.run_sync(_remove, folder)
                folder.mkdir(parents=True)
                progress(f"installing {package.name} {package.version} from {package.ecosystem}")
                try:
                    await install(package, folder, lock, progress)
                except InstallerFailed as exc:
                    raise PackageError(
                        f"{package.name} {package.version} ({package.ecosystem}) could not be installed. "
                        f"{_advice(package)}: {exc}"
                    ) from exc
                (folder / _COMPLETE).write_text(f"{package.name} {package.version}\n", encoding="utf-8")
            return installed

    async def _install_pypi(self, package: Package, folder: Path, lock: int, progress: Progress) -> None:
        if self._indexes is None:
            self._indexes = await anyio.to_thread.run_sync(current_indexes)
        venv = folder / "venv"
        wanted = [f"{package.name}=={package.version}", *package.pins]
        env = installer_environment(os.environ)
        if uv := find_uv():
            env |= {"UV_LINK_MODE": "copy", "UV_NO_PROGRESS": "1", "UV_PYTHON_DOWNLOADS": "never"}
            env = self._indexes.for_uv() | env
            steps = [
                [uv, "venv", "--quiet", "--no-config", "--no-project", "--python", sys.executable, str(venv)],
                [
                    uv,
                    "pip",
                    "install",
                    "--python",
                    str(venv / "bin/python"),
                    "--no-build",
                    "--compile-bytecode",
                    "--",
                ],
            ]
        else:
            steps = [
                [sys.executable, "-m", "venv", str(venv)],
                [
                    str(venv / "bin/python"),
                    "-m",
                    "pip",
                    "install",
                    "--only-binary",
                    ":all:",
                    "--progress-bar",
                    "off",
                ],
            ]
            steps[1] += ["--quiet", "--disable-pip-version-check", "--"]
        steps[1] += wanted
        for step in steps:
            await self._run(step, env, folder, lock, progress)

    async def _install_npm(self, package: Package, folder: Path, lock: int, progress: Progress) -> None:
        wanted = [f"{package.name}@{package.version}", *package.pins]
        options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--no-package-lock"]
        options += ["--omit=dev", "--loglevel=error"]
        await self._run(
            ["npm", "install", "--prefix", str(folder), *options, "--", *wanted],
            installer_environment(os.environ),
            folder,
            lock,
            progress,
        )

    async def _run(self, argv: list[str], env: Mapping[str, str], folder: Path, lock: int, progress: Progress) -> None:
        await run_installer(
            argv,
            env=env,
            cwd=folder,
            on_line=lambda line: None if line.startswith((" ", "Using ")) else progress(line),
            timeout_s=INSTALL_TIMEOUT_S,
            inherit=(lock,),
        )

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


def find_uv() -> str | None:
    """The uv program: the one installed beside this Python, else one on PATH."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.is_file() else shutil.which("uv")


def _describe(package: Package, folder: Path) -> InstalledPackage:
    if package.ecosystem == "pypi":
        python_home = Path(sys.base_prefix)
        return InstalledPackage(
            folder, (folder / "venv/bin",), {"PYTHONDONTWRITEBYTECODE": "1"}, readable=(python_home,)
        )
    node = Path(shutil.which("node") or "/usr/bin/node").resolve()
    return InstalledPackage(folder, (folder / "node_modules/.bin", node.parent), {}, readable=(node.parent.parent,))


def _is_usable(installed: InstalledPackage) -> bool:
    """Complete, and the Python that a virtual environment points to is still there."""
    python = installed.root / "venv/bin/python"
    return (installed.root / _COMPLETE).is_file() and (not python.is_symlink() or python.exists())


def _remove(folder: Path) -> None:
    if folder.exists():
        (folder / _COMPLETE).unlink(missing_ok=True)
        shutil.rmtree(folder)


def _folder_name(package: Package, platform: str) -> str:
    parts = [LAYOUT_VERSION, platform, package.name, package.version, sorted(package.pins)]
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", package.name).strip("-.")
    return f"{slug}-{package.version}-{digest}"


def _python_platform() -> str:
    return f"{sys.implementation.cache_tag}-{sys.base_prefix}-{os.uname().machine}"


async def _node_platform() -> str:
    """Raises PackageError where npm packages cannot run."""
    remedy = f"install Node.js {MINIMUM_NODE} or later with npm, or run the server in a container"
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            raise PackageError(f"npm packages need {program}, which is not on PATH: {remedy}")
    with anyio.move_on_after(PROBE_TIMEOUT_S):
        done = await anyio.run_process(["node", "--version"], check=False)
        version = done.stdout.decode().strip()
        major = version.lstrip("v").partition(".")[0]
        if major.isdigit() and int(major) >= MINIMUM_NODE:
            return f"node{major}-{os.uname().machine}"
        raise PackageError(
            f"npm packages need Node.js {MINIMUM_NODE} or later, this is {version or 'broken'}: {remedy}"
        )
    raise PackageError(f"`node --version` did not answer within {PROBE_TIMEOUT_S:.0f} s: {remedy}")


def _advice(package: Package) -> str:
    if package.ecosystem == "npm":
        return "Check the version in the catalog and that npm reaches its registry (`npm ping`)"
    return (
        "Check the version in the catalog and that pip reaches its index; "
        "a package without wheels can only run in a container"
    )
