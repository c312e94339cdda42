"""The model store: an OCI image layout on disk, one manifest per model, blobs named by their SHA-256.

Knows nothing of where models come from or how they run; it reads no environment."""

import contextlib
import difflib
import fcntl
import hashlib
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgspec

from engine.errors import BadModelFile, EngineError, ModelNotFound
from engine.gguf import GGUFHeader, Scalar, read_header
from engine.parts import MAX_PARTS, files_of, in_order, joined
from engine.sources import KnownModel, fetch

INDEX_TYPE: Final = "application/vnd.oci.image.index.v1+json"
MANIFEST_TYPE: Final = "application/vnd.oci.image.manifest.v1+json"
CONFIG_TYPE: Final = "application/vnd.docker.ai.model.config.v0.1+json"
WEIGHTS_TYPE: Final = "application/vnd.docker.ai.gguf.v3"
TEMPLATE_TYPE: Final = "application/vnd.docker.ai.chat.template.jinja"
LICENSE_TYPE: Final = "application/vnd.docker.ai.license"
WEIGHTS_TYPES: Final = frozenset(
    {WEIGHTS_TYPE, "application/vnd.cncf.model.weight.v1.gguf", "application/vnd.ollama.image.model"}
)
"""Ours, and those of other makers of model artifacts."""
REF_NAME: Final = "org.opencontainers.image.ref.name"
FILE_PATH: Final = "org.cncf.model.filepath"
MAX_DOCUMENT_BYTES: Final = 4 << 20  # manifests, configs, templates: all are small
_CHUNK_BYTES: Final = 1 << 20
_TEMPORARY: Final = ".import-"
_SWEEP_AGE_S: Final = 60.0  # of a temporary file: younger ones may not be locked yet
_FICLONE: Final = 0x40049409  # linux/fs.h: share a file's blocks with another, copied on write
_TAG: Final = r":[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_REF: Final = re.compile(
    r"[a-z0-9]+(?:(?:[._/]|__|-+)[a-z0-9]+)*"
    + _TAG  # a name here, or at Docker Hub
    + r"|[a-z0-9][a-z0-9.-]*(?::[0-9]{1,5})?(?:/[A-Za-z0-9]+(?:(?:[._]|__|-+)[A-Za-z0-9]+)*)+"
    + _TAG  # in a registry
)
_MAX_REF_CHARS: Final = 255

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class StoredModel:
    """One model of the store; `path` is the weights blob, `digest` its "sha256:…".

    Of a split model `path` is the first part, `more_paths` are the others in order, `digest` is that of the manifest.
    """

    ref: str
    path: Path
    digest: str
    manifest_digest: str
    size_bytes: int
    architecture: str
    quantization: str
    parameters: str
    context_length: int
    chat_template: str | None
    license: str | None
    metadata: Mapping[str, Scalar] = field(default_factory=dict)
    more_paths: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Artifact:
    """A model as an OCI artifact: its manifest, and the files of its blobs by digest and media type."""

    manifest: bytes
    media_type: str
    blobs: Mapping[tuple[str, str], Path]


class _Descriptor(msgspec.Struct, rename="camel", omit_defaults=True):
    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}


class Manifest(msgspec.Struct, rename="camel"):
    """The manifest of a model."""

    schema_version: int
    config: _Descriptor
    layers: list[_Descriptor]
    media_type: str = MANIFEST_TYPE
    artifact_type: str | msgspec.UnsetType = msgspec.UNSET


class _Index(msgspec.Struct, rename="camel"):
    schema_version: int = 2
    media_type: str = INDEX_TYPE
    manifests: list[_Descriptor] = []


class _ModelConfig(msgspec.Struct):
    format: str = "gguf"
    quantization: str = ""
    parameters: str = ""
    architecture: str = ""
    size: str = ""
    gguf: dict[str, str] = {}
    context_size: int | None = None


class _Config(msgspec.Struct):
    config: _ModelConfig = msgspec.field(default_factory=_ModelConfig)
    descriptor: dict[str, Any] = {}
    rootfs: dict[str, Any] = {}


def parse_manifest(content: bytes) -> Manifest:
    """Raises: BadModelFile if it is not the manifest of one GGUF model."""
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.MsgspecError as exc:
        raise BadModelFile(f"the manifest is not one of a model: {exc}") from exc
    weights = [layer.digest for layer in manifest.layers if layer.media_type in WEIGHTS_TYPES]
    if not 0 < len(weights) <= MAX_PARTS:
        raise BadModelFile(f"the artifact has {len(weights)} layers of GGUF weights; 1 to {MAX_PARTS} are accepted")
    if len(set(weights)) != len(weights):
        raise BadModelFile("the artifact names the same layer of GGUF weights twice")
    for descriptor in (manifest.config, *manifest.layers):
        if not re.fullmatch(r"sha256:[0-9a-f]{64}", descriptor.digest) or descriptor.size < 0:
            raise BadModelFile("the manifest names a blob without a sha256 digest")
    return manifest


def full_ref(ref: str) -> str:
    """`ref` with its tag. Raises: ModelNotFound if it is not of the form name or name:tag."""
    candidate = ref if ":" in ref.rpartition("/")[2] else f"{ref}:latest"
    if len(candidate) > _MAX_REF_CHARS or not _REF.fullmatch(candidate):
        raise ModelNotFound(f"{ref!r} is not a model name; names look like qwen2.5-coder:0.5b")
    return candidate


class ModelStore:
    """Models under one folder, shared by processes: the index changes under a file lock, blobs appear whole."""

    def __init__(self, root: Path, known: Mapping[str, KnownModel] | None = None) -> None:
        """`known` are the models that `pull` brings, by name."""
        self.root = root
        self.known: Mapping[str, KnownModel] = known or {}
        self._blobs = root / "blobs" / "sha256"
        self._orders: dict[str, list[int]] = {}  # of the weights of split models, by manifest

    def list(self) -> Sequence[StoredModel]:
        """All models, by name."""
        found = [self._stored(entry) for entry in self._index().manifests if REF_NAME in entry.annotations]
        return sorted(found, key=lambda model: model.ref)

    def get(self, ref: str) -> StoredModel:
        """Raises: ModelNotFound if there is no such model, BadModelFile if its blobs are missing or damaged."""
        wanted = full_ref(ref)
        names = []
        for entry in self._index().manifests:
            name = entry.annotations.get(REF_NAME)
            if name == wanted:
                return self._stored(entry)
            if name:
                names.append(name)
        close = difflib.get_close_matches(wanted, sorted({*names, *self.known}), n=3)
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        pullable = " (pull it first)" if wanted in self.known else ""
        raise ModelNotFound(f"the model {wanted} is not in the store{pullable}{hint}")

    def import_file(
        self,
        path: Path,
        ref: str,
        *,
        sha256: str | None = None,
        size_bytes: int | None = None,
        license: str | None = None,
        parameters: str | None = None,
        chat_template: str | None = None,
        disposable: bool = False,
    ) -> StoredModel:
        """Take a GGUF file into the store under `ref`, replacing an earlier model of that name.

        Of a split model any part stands for all: the others must lie beside it.

        A `disposable` file on the same file system is moved, any other is cloned or copied. An interrupted import
        leaves nothing visible. Raises: BadModelFile if the file is no GGUF model or not the one promised.
        """
        files = files_of(path)
        if len(files) > 1 and (sha256 is not None or size_bytes is not None):
            raise BadModelFile(f"{path.name} is one of {len(files)} parts; a digest or size promises a single file")
        pieces = [[file] for file in files]
        return self._import(pieces, ref, sha256, size_bytes, license, parameters, disposable, chat_template)

    def pull(self, ref: str, progress: Progress | None = None) -> StoredModel:
        """Bring a known model into the store; one already there is returned as it is.

        Blocking: run it in a thread. Raises: ModelNotFound for an unknown name, ModelUnavailable if no source delivers.
        """
        say = progress or (lambda _: None)
        wanted = full_ref(ref)
        known = self.known.get(wanted)
        if known is None:
            raise ModelNotFound(f"{wanted} is not in the list of known models: {', '.join(self.known)}")
        self._prepare()
        downloads = self.root / "downloads" / known.sha256
        downloads.mkdir(parents=True, exist_ok=True)
        with _file_lock(downloads.with_suffix(".lock")):  # a second pull of the same model waits for the first
            with contextlib.suppress(ModelNotFound, BadModelFile):
                present = self.get(wanted)
                if present.digest == f"sha256:{known.sha256}":
                    say(f"{wanted} is already in the store")
                    return present
            parts = fetch(known, downloads, say)
            say(f"checking {wanted}")
            stored = self._import_known(known, parts)
            shutil.rmtree(downloads, ignore_errors=True)
        say(f"{wanted} is ready: {stored.size_bytes / 1e6:.0f} MB, {stored.architecture} {stored.quantization}")
        return stored

    def remove(self, ref: str) -> None:
        """Forget `ref` and delete the blobs no other model uses. Raises: ModelNotFound."""
        wanted = full_ref(ref)
        with self._locked():
            index = self._index()
            kept = [entry for entry in index.manifests if entry.annotations.get(REF_NAME) != wanted]
            if len(kept) == len(index.manifests):
                raise ModelNotFound(f"the model {wanted} is not in the store")
            self._write_index(_Index(manifests=kept))
            self._drop_unreferenced(kept)

    def tag(self, ref: str, new: str) -> StoredModel:
        """Give the model of `ref` one more name, replacing what had it. Raises: ModelNotFound."""
        wanted, name = full_ref(ref), full_ref(new)
        with self._locked():
            entries = self._index().manifests
            found = next((entry for entry in entries if entry.annotations.get(REF_NAME) == wanted), None)
            if found is None:
                raise ModelNotFound(f"the model {wanted} is not in the store")
            kept = [entry for entry in entries if entry.annotations.get(REF_NAME) != name]
            again = _Descriptor(found.media_type, found.digest, found.size, {REF_NAME: name})
            self._write_index(_Index(manifests=[*kept, again]))
        return self.get(name)

    def artifact(self, ref: str) -> Artifact:
        """What the model is made of, to be sent elsewhere. Raises: as `get`."""
        model = self.get(ref)
        path = self._blob(model.manifest_digest)
        manifest = msgspec.json.decode(_small_file(path), type=Manifest)
        blobs = {(d.digest, d.media_type): self._blob(d.digest) for d in (manifest.config, *manifest.layers)}
        return Artifact(path.read_bytes(), manifest.media_type, blobs)

    def holds(self, digest: str) -> bool:
        """Whether the blob is here."""
        return self._blob(digest).exists()

    @contextlib.contextmanager
    def downloading(self, digest: str) -> Iterator[Path]:
        """The folder for what arrives of this artifact; a second download of it waits for the first."""
        self._prepare()
        folder = self.root / "downloads" / digest.partition(":")[2]
        folder.parent.mkdir(exist_ok=True)
        with _file_lock(folder.with_suffix(".lock")):
            folder.mkdir(exist_ok=True)
            yield folder

    def adopt(self, ref: str, manifest: bytes, folder: Path) -> StoredModel:
        """Take a model whose blobs lie in `folder`, named by their digests, and were checked against them.

        Raises: BadModelFile if it is no model this engine can run; then nothing of it is kept.
        """
        wanted = full_ref(ref)
        decoded = parse_manifest(manifest)
        self._prepare()
        try:
            weights = [self._blob(layer.digest) for layer in decoded.layers if layer.media_type in WEIGHTS_TYPES]
            arrived = [folder / blob.name for blob in weights]
            in_order([read_header(new if new.exists() else old) for new, old in zip(arrived, weights, strict=True)])
            with self._locked():
                for descriptor in (decoded.config, *decoded.layers):
                    target = self._blob(descriptor.digest)
                    source = folder / target.name
                    if not target.exists():
                        source.chmod(0o444)
                        _fsync(source)
                        source.replace(target)
                described = self._put(manifest, MANIFEST_TYPE)
                described.annotations = {REF_NAME: wanted}
                self._stored(described)  # refused before it has a name
                kept = [entry for entry in self._index().manifests if entry.annotations.get(REF_NAME) != wanted]
                self._write_index(_Index(manifests=[*kept, described]))
        except OSError as exc:
            raise EngineError(f"the model store at {self.root} failed: {exc.strerror or exc}") from exc
        return self.get(wanted)

    def used_bytes(self) -> tuple[int, int]:
        """The bytes of all blobs, and of what is left of interrupted downloads."""
        blobs = sum(file.stat().st_size for file in self._blobs.glob("*") if file.is_file())
        left = sum(file.stat().st_size for file in (self.root / "downloads").rglob("*") if file.is_file())
        return blobs, left

    def prune(self) -> int:
        """Delete blobs that no model uses and interrupted downloads; the bytes that freed."""
        before = sum(self.used_bytes())
        with self._locked():
            self._drop_unreferenced(self._index().manifests)
        shutil.rmtree(self.root / "downloads", ignore_errors=True)
        return before - sum(self.used_bytes())

    def verify(self, ref: str) -> None:
        """Read the weights of `ref` again. Raises: BadModelFile if they no longer match their digest."""
        model = self.get(ref)
        for path in (model.path, *model.more_paths):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            if digest != path.name:  # blobs are named by their digests
                raise BadModelFile(f"the weights of {ref} are damaged on disk; remove the model and pull it again")

    # -- reading

    def _index(self) -> _Index:
        path = self.root / "index.json"
        try:
            return msgspec.json.decode(_small_file(path), type=_Index)
        except FileNotFoundError:
            return _Index()
        except msgspec.MsgspecError as exc:
            raise BadModelFile(f"the model store's index {path} is damaged: {exc}") from exc

    def _blob(self, digest: str) -> Path:
        algorithm, _, value = digest.partition(":")
        if algorithm != "sha256" or not re.fullmatch(r"[0-9a-f]{64}", value):
            raise BadModelFile(f"{digest!r} is not a sha256 digest")
        return self._blobs / value

    def _manifest(self, entry: _Descriptor) -> Manifest:
        try:
            return msgspec.json.decode(_small_file(self._blob(entry.digest)), type=Manifest)
        except (OSError, msgspec.MsgspecError) as exc:
            raise BadModelFile(f"the manifest {entry.digest} cannot be read: {exc}") from exc

    def _stored(self, entry: _Descriptor) -> StoredModel:
        ref = entry.annotations[REF_NAME]
        manifest = self._manifest(entry)
        weights = [layer for layer in manifest.layers if layer.media_type in WEIGHTS_TYPES]
        if not weights:
            raise BadModelFile(f"{ref} has no layer of GGUF weights")
        try:
            for layer in weights:
                found_bytes = self._blob(layer.digest).stat().st_size
                if found_bytes != layer.size:
                    raise BadModelFile(f"weights of {ref} have {found_bytes} bytes, not {layer.size}; pull it again")
            config = msgspec.json.decode(_small_file(self._blob(manifest.config.digest)), type=_Config).config
            texts = {
                layer.media_type: _small_file(self._blob(layer.digest)).decode()
                for layer in manifest.layers
                if layer.media_type in (TEMPLATE_TYPE, LICENSE_TYPE)
            }
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as exc:
            raise BadModelFile(f"{ref} is incomplete in the store: {exc}; remove it and pull it again") from exc
        path, *others = self._in_order(entry.digest, [self._blob(layer.digest) for layer in weights])
        metadata: Mapping[str, Scalar] = config.gguf
        if "general.architecture" not in metadata:  # others' artifacts may say less than ours
            metadata = read_header(path).metadata
        license_text = texts.get(LICENSE_TYPE) or str(metadata.get("general.license", ""))
        template = texts.get(TEMPLATE_TYPE) or metadata.get("tokenizer.chat_template")
        return StoredModel(
            ref=ref,
            path=path,
            digest=entry.digest if others else weights[0].digest,
            manifest_digest=entry.digest,
            size_bytes=sum(layer.size for layer in weights),
            architecture=config.architecture or str(metadata.get("general.architecture", "")),
            quantization=config.quantization,
            parameters=config.parameters,
            context_length=config.context_size or _as_count(metadata, "context_length"),
            chat_template=str(template) if template else None,
            license=license_text.partition("\n")[0].removeprefix("SPDX-License-Identifier: ").strip() or None,
            metadata=metadata,
            more_paths=tuple(others),
        )

    def _in_order(self, manifest_digest: str, weights: Sequence[Path]) -> Sequence[Path]:
        """The parts of a model, the first first, whatever the order of its layers."""
        if len(weights) == 1:
            return weights
        if manifest_digest not in self._orders:  # read once: neither manifests nor blobs change
            self._orders[manifest_digest] = in_order([read_header(path) for path in weights])
        return [weights[position] for position in self._orders[manifest_digest]]

    # -- writing

    def _prepare(self) -> None:
        self._blobs.mkdir(parents=True, exist_ok=True)
        marker = self.root / "oci-layout"
        if not marker.exists():
            self._publish(b'{"imageLayoutVersion":"1.0.0"}', marker)

    def _import_known(self, known: KnownModel, parts: Sequence[Path]) -> StoredModel:
        return self._import([parts], known.ref, known.sha256, known.size_bytes, known.license, known.parameters, True)

    def _import(
        self,
        files: Sequence[Sequence[Path]],
        ref: str,
        sha256: str | None,
        size_bytes: int | None,
        license: str | None,
        parameters: str | None,
        disposable: bool,
        chat_template: str | None = None,
    ) -> StoredModel:
        """Each of `files` is what its pieces are together; several are the parts of a split model."""
        wanted = full_ref(ref)
        try:
            sizes = [sum(piece.stat().st_size for piece in pieces) for pieces in files]
            actual_bytes = sum(sizes)
            if size_bytes is not None and actual_bytes != size_bytes:
                raise BadModelFile(f"{wanted} has {actual_bytes} bytes; {size_bytes} were promised")
            self._prepare()
            self._sweep()
            with contextlib.ExitStack() as stack:
                gathered: list[tuple[Path, str]] = []
                for pieces in files:
                    temporary = stack.enter_context(self._temporary())
                    digest = _gather(pieces, temporary, move=disposable and len(files) == len(pieces) == 1)
                    if sha256 is not None and digest != sha256.lower():
                        raise BadModelFile(f"{wanted} has the SHA-256 {digest}; {sha256} was promised")
                    gathered.append((temporary, digest))
                headers = [read_header(temporary) for temporary, _ in gathered]
                order = in_order(headers)
                header = joined([headers[position] for position in order])
                for temporary, digest in gathered:
                    temporary.chmod(0o444)
                    _fsync(temporary)
                    temporary.replace(self._blobs / digest)
            layers = []
            for position in order:
                named = {FILE_PATH: files[position][0].name} if len(files) > 1 else {}
                layers.append(_Descriptor(WEIGHTS_TYPE, f"sha256:{gathered[position][1]}", sizes[position], named))
            license = license or _as_text(header.metadata.get("general.license"))
            if license:
                layers.append(self._put(f"SPDX-License-Identifier: {license}\n".encode(), LICENSE_TYPE))
            if chat_template:
                layers.append(self._put(chat_template.encode(), TEMPLATE_TYPE))
            config = _config(header, actual_bytes, parameters, [layer.digest for layer in layers])
            manifest = Manifest(2, self._put(msgspec.json.encode(config), CONFIG_TYPE), layers)
            described = self._put(msgspec.json.encode(manifest), MANIFEST_TYPE)
            described.annotations = {REF_NAME: wanted}
            with self._locked():
                kept = [entry for entry in self._index().manifests if entry.annotations.get(REF_NAME) != wanted]
                self._write_index(_Index(manifests=[*kept, described]))
        except OSError as exc:
            raise EngineError(f"the model store at {self.root} failed: {exc.strerror or exc}") from exc
        return self.get(wanted)

    def _put(self, data: bytes, media_type: str) -> _Descriptor:
        digest = hashlib.sha256(data).hexdigest()
        self._publish(data, self._blobs / digest)
        return _Descriptor(media_type, f"sha256:{digest}", len(data))

    def _write_index(self, index: _Index) -> None:
        self._publish(msgspec.json.format(msgspec.json.encode(index), indent=2), self.root / "index.json")

    def _publish(self, data: bytes, target: Path) -> None:
        """Write a small file so that it is either whole and durable or absent."""
        with self._temporary() as temporary:
            temporary.write_bytes(data)
            _fsync(temporary)
            temporary.replace(target)
        _fsync(target.parent)

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A fresh file among the blobs; what is not renamed away is deleted."""
        handle, name = tempfile.mkstemp(prefix=_TEMPORARY, dir=self._blobs)
        temporary = Path(name)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)  # says that somebody is still writing it
            yield temporary
            _fsync(self._blobs)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(handle)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._prepare()
        with _file_lock(self.root / ".lock"):
            yield

    def _sweep(self) -> None:
        """Delete what killed imports left: old temporary files nobody holds a lock on."""
        for left in self._blobs.glob(f"{_TEMPORARY}*"):
            with contextlib.suppress(OSError), left.open("rb") as file:
                if time.time() - left.stat().st_mtime > _SWEEP_AGE_S:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    left.unlink()

    def _drop_unreferenced(self, entries: Sequence[_Descriptor]) -> None:
        used: set[str] = set()
        for entry in entries:
            manifest = self._manifest(entry)
            used |= {self._blob(d.digest).name for d in (entry, manifest.config, *manifest.layers)}
        for blob in self._blobs.iterdir():
            if not blob.name.startswith(_TEMPORARY) and blob.name not in used:
                blob.unlink(missing_ok=True)


@contextlib.contextmanager
def _file_lock(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _small_file(path: Path) -> bytes:
    with path.open("rb") as file:
        data = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(data) > MAX_DOCUMENT_BYTES:
        raise BadModelFile(f"{path} is larger than {MAX_DOCUMENT_BYTES} bytes")
    return data


def _as_count(metadata: Mapping[str, Scalar], key: str) -> int:
    try:
        return int(metadata[f"{metadata['general.architecture']}.{key}"])
    except (KeyError, ValueError):
        return 0


def _as_text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _config(header: GGUFHeader, size_bytes: int, parameters: str | None, diff_ids: Sequence[str]) -> _Config:
    return _Config(
        config=_ModelConfig(
            quantization=header.quantization,
            parameters=parameters or f"{header.n_parameters / 1e6:.2f} M",
            architecture=header.architecture,
            size=f"{size_bytes / 1e6:.2f} MB",
            gguf={key: str(value) for key, value in header.metadata.items()},
            context_size=header.context_length or None,
        ),
        rootfs={"type": "rootfs", "diff_ids": list(diff_ids)},
    )


def _gather(parts: Sequence[Path], target: Path, *, move: bool) -> str:
    """Make `target` the concatenation of `parts` and return its SHA-256 in hex."""
    if move:
        with contextlib.suppress(OSError):
            parts[0].replace(target)
            with target.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
    if len(parts) == 1 and _clone(parts[0], target):
        with target.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for part in parts:
            with part.open("rb") as file:
                _copy(file, out, digest.update)
    return digest.hexdigest()


def _clone(source: Path, target: Path) -> bool:
    """Share the blocks of `source` where the file system can; False where it cannot."""
    with source.open("rb") as src, target.open("wb") as dst:
        try:
            fcntl.ioctl(dst.fileno(), _FICLONE, src.fileno())
        except OSError:
            return False
    return True


def _copy(source: BinaryIO, target: BinaryIO, seen: Callable[[bytes], None]) -> None:
    while chunk := source.read(_CHUNK_BYTES):
        seen(chunk)
        target.write(chunk)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
