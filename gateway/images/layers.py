"""Images made of a base and one layer of ours, the same to the last byte whenever their content is the same.

Knows archives: the engine's (docker save and load) and layers. Does not know what is in the files."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from gateway.errors import ImageError

PINNED_S: Final = 1_767_225_600
"""2026-01-01: no file of a layer of ours is newer, as what is built later would else differ from build to build."""
CREATED: Final = "2026-01-01T00:00:00Z"
KEPT_HEADERS: Final = "SCHILY.xattr."
"""Of a file's extended headers only its attributes are kept (capabilities); times in fractions of seconds are not."""
UNWANTED: Final = (
    "run", "tmp", "proc", "sys", "dev",
    "etc/hostname", "etc/hosts", "etc/resolv.conf", "etc/mtab", "etc/machine-id",
    "etc/passwd-", "etc/group-", "etc/shadow-", "etc/gshadow-", "etc/subuid-", "etc/subgid-",
    "var/cache/ldconfig/aux-cache", "var/cache/debconf/templates.dat-old", "var/cache/debconf/config.dat-old",
    "var/cache/fontconfig",
    "var/lib/dpkg/status-old", "var/lib/dpkg/diversions-old", "var/lib/dpkg/statoverride-old",
    "var/lib/apt/extended_states-old", "var/lib/systemd/catalog/database",
)  # fmt: skip
"""What the engine and the tools leave behind at their run, with times or numbers of its own."""
_KEEP_ITSELF: Final = ("run", "tmp", "proc", "sys", "dev")
_CHUNK: Final = 1 << 20


@dataclass(frozen=True)
class Saved:
    """An image as the engine saved it, in one archive file."""

    path: Path
    config: Mapping[str, Any]
    layers: tuple[str, ...]
    """Names of the layers' archives within it, lowest first."""

    @property
    def diff_ids(self) -> list[str]:
        return [str(one) for one in self.config["rootfs"]["diff_ids"]]


def read_saved(path: Path) -> Saved:
    """Read the index of an archive that the engine saved.

    Raises:
        ImageError: it is none.
    """
    try:
        with tarfile.open(path) as archive:
            manifest = json.loads(_content(archive, "manifest.json"))[0]
            config = json.loads(_content(archive, manifest["Config"]))
            return Saved(path, config, tuple(manifest["Layers"]))
    except (tarfile.TarError, KeyError, ValueError, IndexError, TypeError) as exc:
        raise ImageError(f"the engine saved an image in a form that is not understood: {type(exc).__name__}") from exc


def normalise(saved: Saved, target: Path) -> str:
    """Write the top layer anew, sorted and with pinned times; its digest."""
    with tarfile.open(saved.path) as archive:
        source = archive.extractfile(saved.layers[-1])
        if source is None:
            raise ImageError("the engine saved an image without its top layer")
        with tarfile.open(fileobj=source) as layer, target.open("wb") as raw:
            written = _Hashing(raw)
            with tarfile.open(fileobj=written, mode="w", format=tarfile.PAX_FORMAT) as out:
                for member in sorted(layer.getmembers(), key=lambda member: _name(member).split("/")):
                    if (name := _name(member)) and not _is_unwanted(name):
                        data = layer.extractfile(member) if member.isreg() else None
                        out.addfile(_pinned(member, name), data)
            return f"sha256:{written.hash.hexdigest()}"


def files(saved: Saved, wants: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """The wanted files of all layers, from the lowest up: what comes later replaces what came before."""
    with tarfile.open(saved.path) as archive:
        for name in saved.layers:
            source = archive.extractfile(name)
            if source is None:
                continue
            with tarfile.open(fileobj=source) as layer:
                for member in layer:
                    if member.isreg() and wants(_name(member)):
                        data = layer.extractfile(member)
                        yield _name(member), data.read() if data is not None else b""


def make_config(base: Mapping[str, Any], diff_ids: list[str], settings: Mapping[str, Any]) -> bytes:
    """The configuration of an image: the base's variables below ours, and nothing of when or where it was made."""
    found = base.get("config") or {}
    variables = dict(line.partition("=")[::2] for line in found.get("Env") or ())
    variables |= settings.get("Env", {})
    config = {
        "architecture": base.get("architecture", "amd64"),
        "os": base.get("os", "linux"),
        "created": CREATED,
        "config": {**settings, "Env": [f"{name}={value}" for name, value in sorted(variables.items())]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [{"created": CREATED, "created_by": "lockgate"} for _ in diff_ids],
    }
    if base.get("variant"):
        config["variant"] = base["variant"]
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode()


def write_archive(target: Path, config: bytes, layer: Path, base: Saved, tag: str, *, whole: bool) -> str:
    """An archive for the engine to load; the image's id. Layers of the base are left out unless it is to be `whole`:
    an engine that has them does not need them."""
    id = hashlib.sha256(config).hexdigest()
    n_base = len(base.layers) - 1
    names = [*(f"base-{number}.tar" for number in range(n_base)), "layer.tar"]
    manifest = [{"Config": f"{id}.json", "RepoTags": [tag], "Layers": names}]
    with tarfile.open(target, "w") as out:
        _add(out, f"{id}.json", config)
        if whole:
            with tarfile.open(base.path) as archive:
                for name, source in zip(names, base.layers[:n_base], strict=False):
                    data, member = archive.extractfile(source), archive.getmember(source)
                    if member.issym() or member.islnk():
                        raise ImageError("the engine saved a base image in a form that is not understood")
                    copy = tarfile.TarInfo(name)
                    copy.size = member.size
                    out.addfile(copy, data)
        info = tarfile.TarInfo("layer.tar")
        info.size = layer.stat().st_size
        with layer.open("rb") as data:
            out.addfile(info, data)
        _add(out, "manifest.json", json.dumps(manifest).encode())
    return f"sha256:{id}"


class _Hashing(io.RawIOBase):
    """Writes on, and hashes what it writes."""

    def __init__(self, out: IO[bytes]) -> None:
        self.hash = hashlib.sha256()
        self._out = out

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return self._out.write(data)

    def tell(self) -> int:
        return self._out.tell()


def _pinned(member: tarfile.TarInfo, name: str) -> tarfile.TarInfo:
    member.name = name
    member.mtime = min(int(member.mtime), PINNED_S)
    member.uname = member.gname = ""
    member.pax_headers = {
        key: value for key, value in sorted(member.pax_headers.items()) if key.startswith(KEPT_HEADERS)
    }
    return member


def _name(member: tarfile.TarInfo) -> str:
    return member.name.removeprefix("./").strip("/")


def _is_unwanted(name: str) -> bool:
    if name in _KEEP_ITSELF:
        return False
    return any(name == one or name.startswith(one + "/") for one in UNWANTED)


def _content(archive: tarfile.TarFile, name: str) -> bytes:
    data = archive.extractfile(name)
    return data.read() if data is not None else b""


def _add(out: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    out.addfile(info, io.BytesIO(content))
