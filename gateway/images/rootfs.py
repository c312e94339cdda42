"""A minimal Debian file system as a tarball, made by debootstrap and kept for the next Docker Engine.

Knows nothing of images and servers; it is what they stand on where no container registry can be reached.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import anyio.to_thread

from gateway.errors import ImageError
from gateway.filelock import file_lock, lock_if_free
from gateway.indexes import installer_environment
from gateway.installer import InstallerFailed, run_installer

ROOTFS_VERSION: Final = 1
"""Raised when what goes into the tarball changes."""
DEBOOTSTRAP_TIMEOUT_S: Final = 1200.0
"""About 40 s with a near mirror on two cores."""
ARCHIVE_TIMEOUT_S: Final = 300.0
PACKAGES: Final = ("ca-certificates", "python3", "python3-venv")
_UBUNTU: Final = frozenset({"jammy", "noble"})
_KNOWN_SUITES: Final = frozenset({"bookworm", "trixie"}) | _UBUNTU
"""Releases whose Python is new enough for MCP servers. Any other host gets bookworm."""
_UNWANTED: Final = (
    "var/cache/apt",
    "var/lib/apt/lists",
    "var/log",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
)


class HostApt(NamedTuple):
    """What the host's own apt says: its release, and the lines that name the mirrors of that release."""

    suite: str | None
    mirror: str | None
    source_lines: tuple[str, ...]


def read_host_apt(environ: Mapping[str, str]) -> HostApt:
    """Ask the host's apt for its mirrors, so that a company's mirror serves the images too."""
    try:
        release = Path("/etc/os-release").read_text(encoding="utf-8")
        listed = subprocess.run(
            [
                "apt-get",
                "indextargets",
                "--format",
                "$(REPO_URI) $(RELEASE) $(COMPONENT)",
                "Created-By: Packages",
            ],
            env=installer_environment(environ),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=ARCHIVE_TIMEOUT_S,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return HostApt(None, None, ())
    fields = dict(line.split("=", 1) for line in release.splitlines() if "=" in line)
    suite = fields.get("VERSION_CODENAME", "").strip("\"'")
    if suite not in _KNOWN_SUITES:
        return HostApt(None, None, ())
    lines: list[str] = []
    mirror = None
    for target in listed.stdout.splitlines():
        uri, release_name, component = [*target.split(), "", "", ""][:3]
        if release_name in {suite, f"{suite}-updates", f"{suite}-security"}:
            lines.append(f"deb {uri} {release_name} {component}")
            if release_name == suite and component == "main":
                mirror = mirror or uri
    return HostApt(suite, mirror, tuple(lines))


async def make_rootfs(folder: Path, host: HostApt, *, progress: Callable[[str], None]) -> Path:
    """The tarball below `folder`, made if it is not there yet.

    Raises:
        ImageError: debootstrap is missing, not permitted, or failed.
    """
    suite = host.suite or "bookworm"
    tarball = folder / f"{suite}-{os.uname().machine}-{ROOTFS_VERSION}.tar.gz"
    async with file_lock(folder / f"{tarball.name}.lock") as lock:
        if not tarball.exists():
            await _debootstrap(tarball, suite, host, lock, progress)
    return tarball


async def _debootstrap(tarball: Path, suite: str, host: HostApt, lock: int, progress: Callable[[str], None]) -> None:
    # Private mount and process namespaces: what debootstrap mounts or starts is gone when it ends, so that
    # removing the folder can never reach the host's /proc.
    argv = [
        "unshare",
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--kill-child",
        "debootstrap",
    ]
    missing = [tool for tool in ("debootstrap", "unshare", "tar") if shutil.which(tool) is None]
    if missing:
        raise ImageError(
            f"a base image made from Debian packages needs {' and '.join(missing)} (apt install debootstrap)"
        )
    if os.geteuid() != 0:
        raise ImageError("a base image made from Debian packages needs root: run `sudo lockgate serve` once")
    _clear(tarball)
    root = Path(tempfile.mkdtemp(prefix=_unpacked(tarball), dir=tarball.parent))
    part = _part(tarball)
    env = installer_environment(os.environ) | {
        "LC_ALL": "C.UTF-8",
        "PATH": os.environ.get("PATH", "") + ":/usr/sbin:/sbin",
    }
    try:
        progress(f"making a {suite} base from Debian packages (about a minute, once)")
        await run_installer(
            [
                *argv,
                "--variant=minbase",
                "--force-check-gpg",
                f"--components={'main,universe' if suite in _UBUNTU else 'main'}",
                f"--include={','.join(PACKAGES)}",
                suite,
                str(root),
                *filter(None, [host.mirror]),
            ],
            env=env,
            cwd=tarball.parent,
            on_line=lambda line: progress(line) if line.startswith(("E:", "W:")) else None,
            timeout_s=DEBOOTSTRAP_TIMEOUT_S,
            inherit=(lock,),
        )
        await anyio.to_thread.run_sync(_strip, root, host)
        await run_installer(
            [
                "tar",
                "--numeric-owner",
                "--sort=name",
                "--use-compress-program=gzip -1",
                "-cf",
                str(part),
                "-C",
                str(root),
                ".",
            ],
            env=env,
            cwd=tarball.parent,
            on_line=progress,
            timeout_s=ARCHIVE_TIMEOUT_S,
            inherit=(lock,),
        )
        part.rename(tarball)
    except InstallerFailed as exc:
        raise ImageError(f"the base image could not be made from Debian packages: {exc}") from exc
    finally:
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(lambda: shutil.rmtree(root, ignore_errors=True))
        part.unlink(missing_ok=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed makers left below `folder`. Whoever is at work holds a lock, and so do its programs."""
    for lock in folder.glob("*.tar.gz.lock"):
        with lock_if_free(lock) as is_free:
            if is_free:
                _clear(lock.with_suffix(""))


def _clear(tarball: Path) -> None:
    _part(tarball).unlink(missing_ok=True)
    for root in tarball.parent.glob(f"{_unpacked(tarball)}*"):
        shutil.rmtree(root, ignore_errors=True)


def _part(tarball: Path) -> Path:
    return tarball.with_suffix(".part")


def _unpacked(tarball: Path) -> str:
    """How the folder begins from which this tarball is packed."""
    return f"rootfs-{tarball.name}-"


def _strip(root: Path, host: HostApt) -> None:
    for name in _UNWANTED:
        for child in (root / name).glob("*"):
            if child.is_dir() and not child.is_symlink():
                shutil.rmtree(child)
            else:
                child.unlink()
    for child in (root / "usr/share/doc").glob("*/*"):
        if child.name != "copyright":
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
    if host.mirror:  # the host's mirror is given to each build; the image does not remember it
        (root / "etc/apt/sources.list").unlink(missing_ok=True)
    for name in ("etc/hostname", "etc/resolv.conf", "etc/machine-id"):
        (root / name).unlink(missing_ok=True)
