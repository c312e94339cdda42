"""Reading from and writing to a container registry (OCI distribution specification 1.1): manifests, blobs, referrers.

Blocking: for worker threads. Knows not what the documents mean. What is named by a digest is checked against it.

    client = open_registry(parse("ghcr.io/acme/box"))   # with the user's Docker login; close it
    client.manifest("1")                     -> Document(content, digest), by tag or digest
    client.blob(digest, size)                -> bytes, for small ones (MAX_BYTES)
    client.pull_blob(digest, size, path, progress)      a large one, into a file; goes on where it was interrupted
    client.has_blob(digest)                  -> bool
    client.push_blob(content)                -> Descriptor, in one piece
    client.push_file(path, media_type, progress)        -> Descriptor, in pieces; goes on where it was interrupted
    client.mount_blob(digest, repository)    -> bool, whether the registry took it from another of its repositories
    client.push_manifest(reference, content, media_type) -> digest
    client.referrers(digest)                 -> descriptors

`progress(done_bytes, whole_bytes)` is called after each piece. Writing asks for the right to push, reading does not."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urljoin

import requests

from gateway.errors import ImageError
from gateway.images.conversation import Conversation, is_loopback
from gateway.images.logins import Login, login_for
from gateway.images.names import ImageName
from gateway.wire import envelope
from gateway.wire.envelope import WireError

MAX_BYTES: Final = 4 * 1024 * 1024
"""For one manifest or small blob."""
PIECE_BYTES: Final = 64 * 1024
UPLOAD_BYTES: Final = 8 * 1024 * 1024
"""One request of an upload in pieces; above the 5 MiB that some registries want at least."""
MAX_INTERRUPTIONS: Final = 5
"""In a row, without a byte in between, before a transfer is given up."""
MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
BINARY: Final = "application/octet-stream"
ACCEPT: Final = ", ".join(
    (
        MANIFEST,
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)

Transferred = Callable[[int, int], None]
"""Takes the bytes done and the bytes in all."""


class NotThere(ImageError):
    """The registry answers, and has no such thing."""


class Document(NamedTuple):
    """A manifest as the registry sent it, and its digest as computed here."""

    content: bytes
    digest: str

    def json(self) -> Mapping[str, Any]:
        try:
            value = envelope.value(self.content)
        except WireError as exc:
            raise ImageError(f"manifest {self.digest} is no JSON") from exc
        if not isinstance(value, dict):
            raise ImageError(f"manifest {self.digest} is no JSON object")
        return value


class Descriptor(NamedTuple):
    """What a manifest says of a blob."""

    media_type: str
    digest: str
    size: int

    def json(self) -> dict[str, Any]:
        return {"mediaType": self.media_type, "digest": self.digest, "size": self.size}


def open_registry(name: ImageName) -> RegistryClient:
    """The repository, with the user's login; without TLS only on this machine.

    Raises:
        ImageError: the login cannot be read.
    """
    return RegistryClient(name, login_for(name.registry), insecure=is_loopback(name.host))


class RegistryClient:
    """One repository of one registry, or mirrors of it. Use it in one thread, and close it. A mirror that sends what
    does not fit its digest is not asked again; the registry itself is."""

    def __init__(
        self, name: ImageName, login: Login | None, *, insecure: bool = False, mirrors: Sequence[str] = ()
    ) -> None:
        """`insecure` allows HTTP where there is no TLS; `mirrors` are the URLs to ask before Docker Hub, in order."""
        self._name = name
        self._talk = Conversation(name, login, insecure=insecure, mirrors=mirrors)

    def close(self) -> None:
        self._talk.close()

    # -- reading -----------------------------------------------------------------------------

    def manifest(self, reference: str) -> Document:
        """A manifest by tag or digest.

        Raises:
            NotThere: there is none.
            ImageError: it cannot be had, or is another one than its digest says.
        """
        content = self._get(f"manifests/{reference}", ACCEPT)
        document = Document(content, digest_of(content))
        if ":" in reference and document.digest != reference:
            if self._talk.give_up_mirrors():
                return self.manifest(reference)
            raise ImageError(f"{self._name.host} sent another manifest than {reference} of {self._name.full}")
        return document

    def blob(self, digest: str, size: int | None = None) -> bytes:
        """A small blob, checked.

        Raises:
            NotThere, ImageError: as for manifests.
        """
        content = self._get(f"blobs/{digest}", "*/*", MAX_BYTES if size is None else size)
        if digest_of(content) != digest or len(content) != (len(content) if size is None else size):
            if self._talk.give_up_mirrors():
                return self.blob(digest, size)
            raise ImageError(f"{self._name.host} sent another blob than {digest} of {self._name.full}")
        return content

    def pull_blob(self, digest: str, size: int, path: Path, progress: Transferred = lambda *_: None) -> None:
        """A blob of any size into this file, checked. What was had of it before an interruption is not fetched again:
        it lies in `path` with `.part` after it, also for the next call.

        Raises:
            NotThere: there is none.
            ImageError: it cannot be had, or is another one than its digest says; then nothing of it is kept.
            OSError: the file cannot be written.
        """
        part = path.with_name(f"{path.name}.part")
        interruptions = 0
        while (had := part.stat().st_size if part.exists() else 0) < size:
            if interruptions > MAX_INTERRUPTIONS:
                raise ImageError(f"{self._name.host} breaks off sending {digest} of {self._name.full}; try again")
            with self._open(f"blobs/{digest}", {"Range": f"bytes={had}-"} if had else {}) as response:
                if had and response.status_code == 200:
                    had = 0  # a registry that cannot begin in the middle
                interruptions = 0 if self._write(response, part, had, size, progress) else interruptions + 1
        if part.exists() and _digest_of_file(part) == digest and part.stat().st_size == size:
            part.replace(path)
            return
        if size == 0 and digest == digest_of(b""):
            path.write_bytes(b"")
            return
        part.unlink(missing_ok=True)
        if self._talk.give_up_mirrors():
            self.pull_blob(digest, size, path, progress)
            return
        raise ImageError(f"{self._name.host} sent another blob than {digest} of {self._name.full}")

    def _write(self, response: requests.Response, part: Path, had: int, size: int, progress: Transferred) -> bool:
        """Whether any bytes came; the connection may break at any of them."""
        begun = had
        with part.open("r+b" if part.exists() else "wb") as file:
            file.truncate(had)
            file.seek(had)
            try:
                for piece in response.iter_content(PIECE_BYTES):
                    had += len(piece)
                    if had > size:
                        break  # what is wrong with it, the digest will say
                    file.write(piece)
                    progress(had, size)
            except (requests.exceptions.RequestException, OSError):
                return had > begun
            finally:
                file.flush()
                os.fsync(file.fileno())
        if had > size:
            part.unlink()
            raise ImageError(f"{self._name.host} sent more than the {size} bytes of {self._name.full}")
        return had > begun

    def referrers(self, digest: str) -> Sequence[Mapping[str, Any]]:
        """Descriptors of what refers to the image, by the API or, where a registry lacks it, by the fallback tag."""
        try:
            content = self._get(f"referrers/{digest}", "application/vnd.oci.image.index.v1+json")
        except NotThere:
            try:
                content = self._get(f"manifests/{digest.replace(':', '-')}", ACCEPT)
            except NotThere:
                return ()
        found = Document(content, digest_of(content)).json().get("manifests")
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else ()

    def _get(self, path: str, accept: str, max_bytes: int = MAX_BYTES) -> bytes:
        try:
            return self._got(path, accept, max_bytes)
        except ImageError:
            if self._talk.give_up_mirrors():
                return self._got(path, accept, max_bytes)
            raise

    def _got(self, path: str, accept: str, max_bytes: int) -> bytes:
        with self._open(path, {"Accept": accept}) as response:
            parts, size = [], 0
            try:
                for part in response.iter_content(PIECE_BYTES):
                    size += len(part)
                    if size > max_bytes:
                        raise ImageError(f"{self._name.host} sent more than {max_bytes} bytes for {self._name.full}")
                    parts.append(part)
            except (requests.exceptions.RequestException, OSError) as exc:
                raise ImageError(f"{self._name.host} broke off sending {self._name.full}; try again") from exc
            return b"".join(parts)

    def _open(self, path: str, headers: Mapping[str, str]) -> requests.Response:
        response = self._talk.read(path, headers)
        if response.status_code not in (200, 206):
            with response:
                raise self._failure(response, path)
        return response

    # -- writing -----------------------------------------------------------------------------

    def has_blob(self, digest: str) -> bool:
        """Whether the repository holds it already.

        Raises:
            ImageError: the registry cannot be asked.
        """
        with self._talk.ask("HEAD", f"blobs/{digest}", right="pull,push") as response:
            if response.status_code not in (200, 404):
                raise self._failure(response, f"blobs/{digest}")
            return response.status_code == 200

    def push_blob(self, content: bytes, media_type: str = BINARY) -> Descriptor:
        """Put a small blob there, unless it is there.

        Raises:
            ImageError: the registry does not take it.
        """
        descriptor = Descriptor(media_type, digest_of(content), len(content))
        if not self.has_blob(descriptor.digest):
            self._finish(self._begin(), descriptor.digest, content)
        return descriptor

    def mount_blob(self, digest: str, repository: str) -> bool:
        """Whether the registry took the blob from another repository of its own, so that it need not be sent."""
        query = urlencode({"mount": digest, "from": repository})
        with self._talk.ask("POST", f"blobs/uploads/?{query}", right="pull,push", also=repository) as response:
            if response.status_code == 201:
                return True
            location = response.headers.get("location", "")
        if response.status_code == 202 and location:  # it began an upload instead
            self._talk.send("DELETE", urljoin(response.url, location), right="pull,push").close()
        return False

    def push_file(
        self, path: Path, media_type: str = BINARY, progress: Transferred = lambda *_: None, *, digest: str = ""
    ) -> Descriptor:
        """Put a file of any size there in pieces, unless it is there; `digest` spares computing it.

        Raises:
            ImageError: the registry does not take it, or the connection breaks again and again.
            OSError: the file cannot be read.
        """
        size = path.stat().st_size
        descriptor = Descriptor(media_type, digest or _digest_of_file(path), size)
        if not self.has_blob(descriptor.digest):
            with path.open("rb") as file:
                url, sent, interruptions = self._begin(), 0, 0
                while sent < size:
                    file.seek(sent)
                    piece = file.read(UPLOAD_BYTES)
                    try:
                        url = self._piece(url, piece, sent)
                        sent, interruptions = sent + len(piece), 0
                    except ImageError:
                        interruptions += 1
                        if interruptions > MAX_INTERRUPTIONS:
                            raise
                        url, sent = self._where(url, sent)
                    progress(sent, size)
            self._finish(url, descriptor.digest, b"")
        progress(size, size)
        return descriptor

    def push_manifest(self, reference: str, content: bytes, media_type: str = MANIFEST) -> str:
        """Put a manifest there by tag or digest; its digest. What it names must be there.

        Raises:
            ImageError: the registry does not take it, or has taken something else.
        """
        headers = {"Content-Type": media_type}
        with self._talk.ask(
            "PUT", f"manifests/{reference}", headers=headers, body=content, right="pull,push"
        ) as response:
            if response.status_code != 201:
                raise self._failure(response, f"manifests/{reference}")
            said = response.headers.get("docker-content-digest")
        if said not in (None, digest_of(content)):
            raise ImageError(f"{self._name.host} took another manifest than the one that was pushed")
        return digest_of(content)

    def _begin(self) -> str:
        """Where to send an upload."""
        with self._talk.ask("POST", "blobs/uploads/", body=b"", right="pull,push") as response:
            location = response.headers.get("location", "")
            if response.status_code != 202 or not location:
                raise self._failure(response, "blobs/uploads/")
            return urljoin(response.url, location)

    def _piece(self, url: str, piece: bytes, at: int) -> str:
        headers = {"Content-Type": BINARY, "Content-Range": f"{at}-{at + len(piece) - 1}"}
        with self._talk.send("PATCH", url, headers=headers, body=piece, right="pull,push") as response:
            if response.status_code != 202:
                raise self._failure(response, "blobs/uploads/")
            return urljoin(response.url, response.headers.get("location", url))

    def _where(self, url: str, sent: int) -> tuple[str, int]:
        """Where an interrupted upload goes on, as the registry has it; anew from the start if it has lost it."""
        try:
            with self._talk.send("GET", url, right="pull,push") as response:
                if response.status_code == 204:
                    last = response.headers.get("range", "").rpartition("-")[2]
                    n_bytes = int(last) + 1 if last.isdigit() and int(last) > 0 else 0
                    return urljoin(response.url, response.headers.get("location", url)), n_bytes
        except ImageError:
            return url, sent
        return self._begin(), 0

    def _finish(self, url: str, digest: str, rest: bytes) -> None:
        joint = "&" if "?" in url else "?"
        url = f"{url}{joint}{urlencode({'digest': digest})}"
        headers = {"Content-Type": BINARY}
        with self._talk.send("PUT", url, headers=headers, body=rest, right="pull,push") as response:
            if response.status_code != 201:
                raise self._failure(response, f"blobs/{digest}")

    def _failure(self, response: requests.Response, path: str) -> ImageError:
        what, _, which = path.partition("/")
        match response.status_code:
            case 404:
                return NotThere(f"{self._name.full} has no {which if what == 'manifests' else path}")
            case 401 | 403:
                return ImageError(f"{self._name.host} does not allow this for {self._name.full}; see: docker login")
            case status:
                return ImageError(f"{self._name.host} answered HTTP {status} for {self._name.full}")


def digest_of(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _digest_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    for piece in _pieces(path):
        digest.update(piece)
    return f"sha256:{digest.hexdigest()}"


def _pieces(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(UPLOAD_BYTES):
            yield piece
