"""The specification of a container: everything a server was not given is taken away.

Pure: knows entries and images, and neither an engine nor whether anything was ever started from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from catalog import Entry
from gateway.images import Image

MAX_OPEN_FILES: Final = 4096
MAX_PROCESSES: Final = 32_768
"""Of the container's user on the whole host, so not a limit of one server (that is PidsLimit): Podman would ask for
more than root may have where CAP_SYS_RESOURCE is missing."""
MAX_MOUNTED_TMP_MIB: Final = 1024
MIB: Final = 1024 * 1024
SHM_BYTES: Final = 16 * MIB
WRITABLE: Final = "rw,noexec,nosuid,nodev"


class Folder(NamedTuple):
    """A folder of the host that the container sees."""

    source: Path
    target: str
    writable: bool = True


def specification(
    entry: Entry, image: Image, *, user: str, folders: Sequence[Folder], labels: Mapping[str, str]
) -> dict[str, Any]:
    """The complete create request for one server (Engine API v1.41, ContainerCreate)."""
    limits = entry.limits
    memory = limits.memory_mib * MIB
    tmp = f"{WRITABLE},size={min(limits.tmpfs_mib, MAX_MOUNTED_TMP_MIB)}m,mode=1777"
    return {
        "Image": image.id,
        "Cmd": list(entry.command if image.origin == "local" else entry.args) or None,
        "User": user,
        "Env": [f"{name}={value}" for name, value in ({"HOME": "/tmp"} | dict(entry.env)).items()],  # noqa: S108
        "Labels": dict(labels),
        "Tty": False,
        "OpenStdin": True,
        "StdinOnce": True,
        "AttachStdin": True,
        "AttachStdout": True,
        "AttachStderr": True,
        "HostConfig": {
            "Binds": [f"{one.source}:{one.target}:{'rw' if one.writable else 'ro'}" for one in folders],
            "NetworkMode": "bridge" if entry.network == "internet" else "none",
            "RestartPolicy": {"Name": "no"},
            "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"],
            "Privileged": False,
            "ReadonlyRootfs": True,
            "Tmpfs": {"/tmp": tmp},  # noqa: S108  # the container's own
            "IpcMode": "private",
            "CgroupnsMode": "private",
            "Ulimits": [
                {"Name": "nofile", "Soft": MAX_OPEN_FILES, "Hard": MAX_OPEN_FILES},
                {"Name": "core", "Soft": 0, "Hard": 0},
                {"Name": "nproc", "Soft": MAX_PROCESSES, "Hard": MAX_PROCESSES},
            ],
            # Without a log driver no result is stored on disk by the engine; attach works all the same.
            "LogConfig": {"Type": "none", "Config": {}},
            "Memory": memory,
            "MemorySwap": memory,
            "NanoCpus": int(limits.cpus * 1e9),
            "PidsLimit": limits.pids,
            "ShmSize": SHM_BYTES,
            "Init": True,
            "AutoRemove": True,
        },
    }
