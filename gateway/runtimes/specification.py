"""The specification of a container: everything a server was not given is taken away.

Pure: knows entries and images, and neither an engine nor whether anything was ever started from it."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

from catalog import Entry
from catalog.reference import check_target
from gateway.errors import UpstreamUnavailable
from gateway.images import Image
from gateway.runtimes import launcher
from gateway.secrets import SecretValue

MAX_OPEN_FILES: Final = 4096
MAX_PROCESSES: Final = 32_768
"""Of the container's user on the whole host, so not a limit of one server (that is PidsLimit): Podman would ask for
more than root may have where CAP_SYS_RESOURCE is missing."""
MAX_MOUNTED_TMP_MIB: Final = 1024
MAX_IMAGE_VOLUMES: Final = 16
INODES_PER_MIB: Final = 256
MIB: Final = 1024 * 1024
SHM_BYTES: Final = 16 * MIB
WRITABLE: Final = "rw,noexec,nosuid,nodev"
TMP: Final = "/tmp"  # noqa: S108  # the container's own
PODMANS_OWN: Final = ("/run", "/var/tmp")  # noqa: S108  # the container's own
OOM_SCORE: Final = 500
"""When the whole machine is out of memory, a server goes before the gateway does."""


STREAMS: Final[Mapping[str, Any]] = {
    "OpenStdin": True,
    "StdinOnce": True,
    "AttachStdin": True,
    "AttachStdout": True,
    "AttachStderr": True,
}
CONFINED: Final[Mapping[str, Any]] = {
    "RestartPolicy": {"Name": "no"},
    "CapDrop": ["ALL"],
    "SecurityOpt": ["no-new-privileges"],
    "Privileged": False,
    "ReadonlyRootfs": True,
    "IpcMode": "private",
    "CgroupnsMode": "private",
    # Without a log driver no result is stored on disk by the engine; attach works all the same.
    "LogConfig": {"Type": "none", "Config": {}},
    "OomScoreAdj": OOM_SCORE,
    "ShmSize": SHM_BYTES,
    "Init": True,
    "AutoRemove": True,
}
"""What holds for every container."""


class Folder(NamedTuple):
    """A folder or file of the host that the container sees."""

    source: Path
    target: str
    writable: bool = True


class ImageFacts(NamedTuple):
    """What an image says of itself, as far as anybody listens: its program, and what must be put out of effect."""

    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    """Their names."""

    @classmethod
    def of(cls, inspected: Mapping[str, Any]) -> Self:
        """From the engine's answer to ImageInspect."""
        config = inspected.get("Config") or {}
        return cls(
            tuple(config.get("Entrypoint") or ()),
            tuple(config.get("Cmd") or ()),
            tuple(sorted(config.get("Volumes") or ())),
            tuple(sorted(config.get("Labels") or ())),
            tuple(one.partition("=")[0] for one in config.get("Env") or ()),
        )

    @property
    def suits_a_shell(self) -> bool:
        """Whether nothing of its environment is lost on the way through the launcher, which is a shell's."""
        return all(name.isascii() and name.isidentifier() for name in self.variables)


@dataclass(frozen=True)
class Given:
    """What one container is given beside its entry and image."""

    user: str
    labels: Mapping[str, str]
    folders: Sequence[Folder] = ()
    launcher_volume: str = ""
    """Where set, the launcher starts the server."""
    pipes: Path | None = None
    """The folder of the pipes that the launcher may put in place of stdin and stdout."""
    plain: Mapping[str, SecretValue] = field(default_factory=dict)
    """Secrets that the entry wants in the container's own environment, by variable."""
    network: str = "none"
    dns: str = ""
    """The only name server; empty where there is no network of its own."""
    container_runtime: str = ""


def specification(entry: Entry, image: Image, facts: ImageFacts, given: Given) -> dict[str, Any]:
    """The complete create request for one server (Engine API v1.41, ContainerCreate).

    Raises:
        UpstreamUnavailable: the image declares a volume where nothing may be mounted.
    """
    memory = entry.limits.memory_mib * MIB
    env = {"HOME": TMP, **entry.env, **{name: one.reveal().decode() for name, one in given.plain.items()}}
    return {
        "Image": image.id,
        **_program(entry, image, facts, given),
        "User": given.user,
        "Env": [f"{name}={value}" for name, value in env.items()],
        # A label of the image would be one of the container, where other programs of the host act on labels.
        "Labels": {**dict.fromkeys(facts.labels, ""), **given.labels},
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "Tty": False,
        **STREAMS,
        "HostConfig": {
            **CONFINED,
            "Binds": [f"{one.source}:{one.target}:{'rw' if one.writable else 'ro'}" for one in given.folders],
            "Mounts": [*_launcher_mount(given), *_pipes_mount(given)],
            "NetworkMode": given.network,
            "Dns": [given.dns] if given.dns else [],
            "Tmpfs": _tmpfs(entry, image, facts, given),
            "Ulimits": _limits(entry.limits.volume_mib * MIB),
            "Memory": memory,
            "MemorySwap": memory,
            "NanoCpus": int(entry.limits.cpus * 1e9),
            "PidsLimit": entry.limits.pids,
            **({"Runtime": given.container_runtime} if given.container_runtime else {}),
            **({"DeviceRequests": [_gpus(entry.limits.gpus)]} if entry.limits.gpus else {}),
        },
    }


def as_podman_takes_it(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The same request without the one thing Podman refuses: a limit of files in a tmpfs; its memory stays limited.
    What Podman makes writable beside a read-only root gets the limits of /tmp."""
    host = dict(spec["HostConfig"])
    tmpfs = {
        target: ",".join(one for one in options.split(",") if not one.startswith("nr_inodes="))
        for target, options in host.get("Tmpfs", {}).items()
    }
    host["Tmpfs"] = {**dict.fromkeys(PODMANS_OWN, tmpfs.get(TMP, f"{WRITABLE},size=4m")), **tmpfs}
    return {**spec, "HostConfig": host}


FILTER_MEMORY_MIB: Final = 96
FILTER_CPUS: Final = 0.5
FILTER_PIDS: Final = 64


def filter_specification(
    image: str, command: Sequence[str], labels: Mapping[str, str], network: str, user: str = "65532:65532"
) -> dict[str, Any]:
    """The create request for the egress filter of one server: as confined as the server itself, but for its network."""
    memory = FILTER_MEMORY_MIB * MIB
    return {
        "Image": image,
        "Entrypoint": [],
        "Cmd": list(command),
        "User": user,
        "Env": ["PYTHONDONTWRITEBYTECODE=1"],
        "Labels": dict(labels),
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGKILL",
        "Tty": False,
        **STREAMS,
        "HostConfig": {
            "NetworkMode": network,
            **CONFINED,
            "Tmpfs": {TMP: f"{WRITABLE},size=4m,nr_inodes=64,mode=1777"},
            "Ulimits": _limits(4 * MIB),
            "Memory": memory,
            "MemorySwap": memory,
            "NanoCpus": int(FILTER_CPUS * 1e9),
            "PidsLimit": FILTER_PIDS,
            # Low ports without a capability; and no packet passes from one of its networks to the other.
            "Sysctls": {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ip_forward": "0"},
        },
    }


def _program(entry: Entry, image: Image, facts: ImageFacts, given: Given) -> dict[str, Any]:
    """A published image runs its own entrypoint, a local one the entry's command; the launcher first, if needed."""
    arguments = list(entry.command if image.origin == "local" else entry.args)
    if not given.launcher_volume:
        return {"Cmd": arguments or None}
    own = [] if image.origin == "local" else list(facts.entrypoint)
    return {"Entrypoint": list(launcher.ENTRYPOINT), "Cmd": [*own, *(arguments or facts.command)]}


def _launcher_mount(given: Given) -> list[dict[str, Any]]:
    if not given.launcher_volume:
        return []
    options = {"NoCopy": True}
    return [
        {
            "Type": "volume",
            "Source": given.launcher_volume,
            "Target": launcher.MOUNT,
            "ReadOnly": True,
            "VolumeOptions": options,
        }
    ]


def _pipes_mount(given: Given) -> list[dict[str, Any]]:
    """Read-only, which named pipes do not mind; and what is not there is an error, and not made."""
    if given.pipes is None:
        return []
    return [{"Type": "bind", "Source": str(given.pipes), "Target": launcher.PIPES, "ReadOnly": True}]


def _tmpfs(entry: Entry, image: Image, facts: ImageFacts, given: Given) -> dict[str, str]:
    size_mib = min(entry.limits.tmpfs_mib, MAX_MOUNTED_TMP_MIB)
    options = f"{WRITABLE},size={size_mib}m,nr_inodes={size_mib * INODES_PER_MIB},mode=1777"
    found = {TMP: options}
    if any(secret.file for secret in entry.secrets):
        uid, _, gid = given.user.partition(":")
        found[launcher.SECRETS_FOLDER] = f"{WRITABLE},size=4m,nr_inodes=64,mode=0700,uid={uid},gid={gid}"
    taken = {TMP, *(folder.target for folder in given.folders)}
    if len(facts.volumes) > MAX_IMAGE_VOLUMES:
        raise UpstreamUnavailable(f"image {image.reference} declares more than {MAX_IMAGE_VOLUMES} volumes")
    for declared in facts.volumes:
        target = posixpath.normpath(declared)
        if target in taken:
            continue
        try:
            found[check_target(target)] = options
        except ValueError as exc:
            raise UpstreamUnavailable(f"image {image.reference} declares a volume that is refused: {exc}") from exc
    return found


def _limits(largest_file: int) -> list[dict[str, Any]]:
    limits = {"nofile": MAX_OPEN_FILES, "core": 0, "nproc": MAX_PROCESSES, "fsize": largest_file}
    return [{"Name": name, "Soft": value, "Hard": value} for name, value in limits.items()]


def _gpus(count: int) -> dict[str, Any]:
    return {"Driver": "", "Count": count, "Capabilities": [["gpu"]]}
