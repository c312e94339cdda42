"""Models that other programs keep on this machine: Ollama's store, and the cache folder of llama.cpp.

Knows where they lie and how they are named; reads no environment and changes nothing there."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from engine.parts import PART_NAME

_WEIGHTS: Final = "application/vnd.ollama.image.model"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_MAX_MANIFEST_BYTES: Final = 1 << 20


class _Layer(msgspec.Struct, rename="camel"):
    media_type: str
    digest: str


class _Manifest(msgspec.Struct):
    layers: list[_Layer]


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A model of another program: whose, its name there, its file, and the digest that file should have."""

    program: str
    name: str
    path: Path
    sha256: str | None

    @property
    def size_bytes(self) -> int:
        """Of a split model, of all its parts that are there."""
        part = PART_NAME.fullmatch(self.path.name)
        if self.sha256 is not None or part is None:
            return self.path.stat().st_size
        found = [
            file
            for file in self.path.parent.iterdir()
            if (one := PART_NAME.fullmatch(file.name)) and (one["name"], one["count"]) == (part["name"], part["count"])
        ]
        return sum(file.stat().st_size for file in found)


def neighbours(home: Path) -> Iterator[Neighbour]:
    """All models that other programs of the user keep, as far as they can be read."""
    yield from _of_ollama(home / ".ollama" / "models")
    yield from _of_llama_cpp(home / ".cache" / "llama.cpp")


def _of_ollama(root: Path) -> Iterator[Neighbour]:
    manifests = root / "manifests"
    for path in sorted(manifests.rglob("*")):
        if not path.is_file() or path.stat().st_size > _MAX_MANIFEST_BYTES:
            continue
        try:
            layers = msgspec.json.decode(path.read_bytes(), type=_Manifest).layers
        except (OSError, msgspec.MsgspecError):
            continue
        digest = next((layer.digest for layer in layers if layer.media_type == _WEIGHTS), "")
        weights = root / "blobs" / digest.replace(":", "-")
        if _DIGEST.fullmatch(digest) and weights.is_file():
            *folders, model, tag = path.relative_to(manifests).parts
            owner = [folder for folder in folders[1:] if folder != "library"]
            name = "/".join([*owner, f"{model}:{tag}"])
            yield Neighbour("ollama", name, weights, digest.partition(":")[2])


def _of_llama_cpp(root: Path) -> Iterator[Neighbour]:
    for path in sorted(root.glob("*.gguf")):
        part = PART_NAME.fullmatch(path.name)
        if part and int(part["number"]) != 1:
            continue  # the first stands for all
        stem = part["name"] if part else path.stem
        name = re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-")
        if name:
            yield Neighbour("llama.cpp", f"{name}:latest", path, None)
