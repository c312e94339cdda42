"""Which folders of this machine may be mounted: a corpus of those that may not."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from catalog import Mount, Volume
from gateway.errors import MountRefused
from gateway.mounts import NEVER_ROOTS, NOT_WHOLE, PRIVATE_NAMES, MountGuard, check_root


@pytest.fixture
def approved(tmp_path: Path) -> Iterator[Path]:
    """A tree with everything that must not be mounted in it."""
    root = tmp_path / "approved"
    for name in ("work/deep", "home/.ssh", "state/volumes", "engine", "parent/of/state"):
        (root / name).mkdir(parents=True)
    (tmp_path / "forbidden/inner").mkdir(parents=True)
    (root / "work/file").write_text("x")
    for private in PRIVATE_NAMES:
        (root / "private" / private / "below").mkdir(parents=True)
        (root / f"holds{private}" / private).mkdir(parents=True)
    for name, target in (
        ("out", "../forbidden"), ("absolute", "/etc"), ("up", ".."), ("inside", "work"), ("self", "self"),
        ("work/link", "../../forbidden"), ("proc", "/proc/self/root"), ("fd", "/proc/self/fd"), ("work/etc", "/etc"),
    ):  # fmt: skip
        (root / name).symlink_to(target)
    os.mkfifo(root / "work/pipe")
    sockets = []
    for name in ("work/socket", "engine/engine.sock"):
        one = socket.socket(socket.AF_UNIX)
        one.bind(os.path.relpath(root / name))  # a path may be too long for a socket
        sockets.append(one)
    yield root
    for one in sockets:
        one.close()


def guard(root: Path) -> MountGuard:
    return MountGuard([root], [root / "state", root / "engine/engine.sock", root / "parent/of/state"])


REFUSED = [
    # Not below an approved folder, in many spellings.
    "/",
    "/etc",
    "/etc/passwd",
    "/root",
    "/home",
    "/proc",
    "/proc/1/root",
    "/proc/self/root",
    "/proc/self/cwd",
    "/sys",
    "/sys/fs/cgroup",
    "/dev",
    "/dev/sda",
    "/dev/mem",
    "/boot",
    "/run",
    "/var/run/docker.sock",
    "/run/docker.sock",
    "/run/containerd/containerd.sock",
    "/run/podman/podman.sock",
    "/var/lib/docker",
    "/var/lib/containerd",
    "/usr/bin",
    "/lib/modules",
    "/tmp",
    "/var/spool/cron",
    "/etc/cron.d",
    "/etc/ssh",
    "/etc/shadow",
    "/var/log",
    "/mnt",
    "/opt",
    "{root}x",
    "{root}/../forbidden",
    "{root}/..",
    "{root}/../approved/work",
    "{root}/work/../../forbidden",
    # Not normalised, or not a path.
    "{root}/",
    "{root}//work",
    "{root}/work/",
    "{root}/./work",
    "//{root}/work",
    "{root}/work/.",
    "work",
    "./work",
    "../work",
    "~",
    "~/work",
    "$HOME",
    "${{HOME}}/work",
    "",
    " ",
    ".",
    "..",
    "{root}/work\0",
    "\0",
    "file://{root}/work",
    # Forms that split, or that another system reads.
    "{root}/work:/etc",
    "{root}/work:/x:rw",
    "{root}/work:ro",
    "{root}/work:rshared",
    "{root}/work:shared,rw",
    "C:\\Windows",
    "C:/Windows",
    "\\\\server\\share",
    "//server/share",
    "\\\\.\\pipe\\docker_engine",
    "//./pipe/docker_engine",
    "/c/Users",
    "{root}\\work",
    "{root}/work,readonly",
    "{root}/work,dst=/etc",
    "type=bind,src=/,dst=/x",
    "{root}/work;x",
    "{root}/*",
    # Links, wherever they lead.
    "{root}/out",
    "{root}/out/inner",
    "{root}/absolute",
    "{root}/absolute/passwd",
    "{root}/up",
    "{root}/up/forbidden",
    "{root}/inside",
    "{root}/inside/deep",
    "{root}/self",
    "{root}/work/link",
    "{root}/work/link/inner",
    "{root}/proc",
    "{root}/proc/etc",
    "{root}/fd",
    "{root}/work/etc",
    # Neither folder nor file, or not there.
    "{root}/work/pipe",
    "{root}/work/socket",
    "{root}/nothing",
    "{root}/work/file/below",
    "{root}/work/nothing/below",
    # The gateway's own, the engine's own, and what holds them.
    "{root}",
    "{root}/state",
    "{root}/state/volumes",
    "{root}/engine",
    "{root}/engine/engine.sock",
    "{root}/parent",
    "{root}/parent/of",
    "{root}/parent/of/state",
    # Keys and logins, and what holds them.
    "{root}/home",
    "{root}/home/.ssh",
    *(f"{{root}}/private/{name}" for name in sorted(PRIVATE_NAMES)),
    *(f"{{root}}/private/{name}/below" for name in sorted(PRIVATE_NAMES)),
    *(f"{{root}}/holds{name}" for name in sorted(PRIVATE_NAMES)),
]


@pytest.mark.sec("SEC-067")
def test_there_are_more_than_a_hundred_refused_mounts_and_each_is_another() -> None:
    assert len(set(REFUSED)) == len(REFUSED) > 100


@pytest.mark.sec("SEC-067")
@pytest.mark.parametrize("source", REFUSED)
def test_a_mount_is_refused(approved: Path, source: str) -> None:
    with pytest.raises(MountRefused) as caught:
        guard(approved).open(source.format(root=approved))
    assert str(caught.value)


def test_folders_and_files_below_an_approved_folder_may_be_mounted(approved: Path) -> None:
    for name in ("work", "work/deep", "work/file"):
        found = guard(approved).open(f"{approved}/{name}")
        seen = (approved / name).stat()
        assert found.identity == f"{seen.st_dev}:{seen.st_ino}"


def test_an_approved_folder_may_itself_be_reached_by_a_link(approved: Path, tmp_path: Path) -> None:
    (tmp_path / "by-link").symlink_to(approved)
    found = MountGuard([tmp_path / "by-link"], []).open(f"{tmp_path}/by-link/work")
    assert found.path == approved / "work"


@pytest.mark.sec("SEC-067")
def test_without_an_approved_folder_nothing_is_mounted(approved: Path) -> None:
    with pytest.raises(MountRefused, match="LOCKGATE_MOUNT_ROOTS"):
        MountGuard([], []).open(f"{approved}/work")


@pytest.mark.sec("SEC-068")
def test_what_was_exchanged_is_noticed(approved: Path) -> None:
    opened = guard(approved).open(f"{approved}/work")
    guard(approved).recheck(opened)
    (approved / "work").rename(approved / "aside")
    with pytest.raises(MountRefused):
        guard(approved).recheck(opened)
    (approved / "work").symlink_to("aside")
    with pytest.raises(MountRefused, match="symbolic link"):
        guard(approved).recheck(opened)
    (approved / "work").unlink()
    (approved / "work").mkdir()
    with pytest.raises(MountRefused, match="replaced"):
        guard(approved).recheck(opened)


@pytest.mark.sec("SEC-067")
@pytest.mark.parametrize(
    "root", [*NEVER_ROOTS, *NOT_WHOLE, "/etc/ssh", "/proc/self", "/dev/shm", "relative", ".", "/usr/../etc"]
)
def test_a_folder_of_the_system_cannot_be_approved(root: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        check_root(Path(root))


@pytest.mark.sec("SEC-067")
@pytest.mark.parametrize(
    "target",
    [
        "/",
        "/etc",
        "/etc/x",
        "/proc",
        "/proc/self",
        "/sys",
        "/dev",
        "/dev/shm",
        "/usr",
        "/usr/bin",
        "/bin/sh",
        "/lib",
        "/run",
        "/run/lockgate",
        "/run/lockgate/launch",
        "/run/secrets/../lockgate",
        "/var/run",
        "/var/run/docker.sock",
        "/boot",
        "/sbin",
        "/data:ro",
        "/data:/etc",
        "/data,rw",
        "/a/../etc",
        "/a/./b",
        "//etc",
        "/data/",
        "data",
        "",
        "C:\\x",
        "/tmp",
        "/root",
        "/home",
    ],
)
def test_a_mount_never_covers_the_system_of_a_container(target: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        Mount(source="/srv/work", target=target)
    with pytest.raises(ValueError, match=r".+"):
        Volume(name="x", target=target)
