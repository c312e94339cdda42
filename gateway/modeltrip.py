"""Models on their way from and to container registries, in the published artifact format.

Knows the store and the registry client, and brings them together; not what a model is. Blocking: for worker threads."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from engine import ModelStore, ModelUnavailable, StoredModel
from engine.store import Manifest, full_ref, parse_manifest
from gateway.images.names import ImageName, parse
from gateway.images.registry import Descriptor, open_registry

PARALLEL: Final = 4
"""Layers on their way at once; each has a connection of its own."""
SPARE_BYTES: Final = 256 << 20
"""Left free on the disk."""

Progress = Callable[[str, int, int], None]
"""Told the digest of a layer, its bytes that have arrived, and all its bytes; from several threads, one at a time."""


def pull_model(store: ModelStore, reference: str, progress: Progress) -> StoredModel:
    """Bring a model into the store under the name it has in its registry. What an interrupted call had is used again.

    Raises:
        ModelUnavailable: there is no room for it.
        BadModelFile: it is no model the engine can run.
        ImageError: the registry does not give it, or gives something else than its digests say.
    """
    ref = full_ref(reference.partition("@")[0])
    name = parse(reference)
    client = open_registry(name)
    try:
        document = client.manifest(name.digest or name.tag or "latest")
    finally:
        client.close()
    manifest = parse_manifest(document.content)
    with store.downloading(document.digest) as folder:
        _fetch(store, manifest, name, folder, progress)
        stored = store.adopt(ref, document.content, folder)
        shutil.rmtree(folder, ignore_errors=True)
    return stored


def _fetch(store: ModelStore, manifest: Manifest, name: ImageName, folder: Path, progress: Progress) -> None:
    wanted = {d.digest: d.size for d in (manifest.config, *manifest.layers) if not store.holds(d.digest)}
    _check_room(folder, sum(wanted.values()), name.tagged)
    tell = _one_at_a_time(progress)

    def fetch(digest: str, size: int) -> None:
        path = folder / digest.partition(":")[2]
        if path.exists():
            return
        client = open_registry(name)
        try:
            client.pull_blob(digest, size, path, lambda had, all_bytes: tell(digest, had, all_bytes))
        finally:
            client.close()

    with ThreadPoolExecutor(PARALLEL) as pool:
        for done in [pool.submit(fetch, digest, size) for digest, size in wanted.items()]:
            done.result()


def push_model(store: ModelStore, ref: str, reference: str, progress: Progress) -> str:
    """Put a model of the store into a registry; the digest of its manifest there.

    Raises:
        ModelNotFound: it is not in the store.
        ImageError: the registry does not take it.
    """
    artifact = store.artifact(ref)
    name = parse(reference)
    tell = _one_at_a_time(progress)

    def send(digest: str, media_type: str, path: Path) -> Descriptor:
        client = open_registry(name)
        try:
            return client.push_file(path, media_type, lambda had, size: tell(digest, had, size), digest=digest)
        finally:
            client.close()

    with ThreadPoolExecutor(PARALLEL) as pool:
        for done in [pool.submit(send, *named, path) for named, path in artifact.blobs.items()]:
            done.result()
    return _push_manifest(name, artifact.manifest, artifact.media_type)


def _push_manifest(name: ImageName, content: bytes, media_type: str) -> str:
    client = open_registry(name)
    try:
        return client.push_manifest(name.tag or "latest", content, media_type)
    finally:
        client.close()


def _check_room(folder: Path, size_bytes: int, reference: str) -> None:
    there = sum(file.stat().st_size for file in folder.iterdir())
    free = shutil.disk_usage(folder).free
    if free < size_bytes - there + SPARE_BYTES:
        raise ModelUnavailable(f"{reference} needs {size_bytes / 1e6:.0f} MB at {folder}; {free / 1e6:.0f} MB are free")


def _one_at_a_time(progress: Progress) -> Progress:
    lock = threading.Lock()

    def tell(digest: str, had: int, size: int) -> None:
        with lock:
            progress(digest, had, size)

    return tell
