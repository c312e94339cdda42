"""Reading manifests and small blobs from a container registry (OCI distribution specification 1.1).

Knows HTTP and logins; not what the documents mean. Blocking: for worker threads. What is named by a digest is checked
against it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlencode, urljoin, urlsplit

import requests

from gateway.errors import ImageError
from gateway.images.logins import Login
from gateway.images.names import HUB, ImageName
from gateway.wire import envelope
from gateway.wire.envelope import WireError

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 30.0
MAX_BYTES: Final = 4 * 1024 * 1024
"""For one manifest or blob; what is read here is far smaller."""
ACCEPT: Final = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
_PARAMETER: Final = re.compile(r'([a-z]+)="([^"]*)"')


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


class Registry:
    """One repository of one registry, or a mirror of it. Use it in one thread, and close it."""

    def __init__(self, name: ImageName, login: Login | None, *, insecure: bool = False, mirror: str = "") -> None:
        """`insecure` allows HTTP where there is no TLS; `mirror` is the URL to ask before Docker Hub."""
        self._name = name
        self._login = login
        self._bases = [f"{mirror.rstrip('/')}/"] if mirror and name.registry == HUB else []
        self._bases += [f"https://{name.host}/"] + ([f"http://{name.host}/"] if insecure else [])
        self._insecure = insecure
        self._session = requests.Session()
        self._session.auth = _as_it_is  # else the user's .netrc would be sent
        self._authorization = ""

    def close(self) -> None:
        self._session.close()

    def manifest(self, reference: str) -> Document:
        """A manifest by tag or digest.

        Raises:
            NotThere: there is none.
            ImageError: it cannot be had, or is another one than its digest says.
        """
        content = self._get(f"manifests/{reference}", ACCEPT)
        document = Document(content, _digest(content))
        if ":" in reference and document.digest != reference:
            raise ImageError(f"{self._name.host} sent another manifest than {reference} of {self._name.full}")
        return document

    def blob(self, digest: str) -> bytes:
        """A small blob, checked.

        Raises:
            NotThere, ImageError: as for manifests.
        """
        content = self._get(f"blobs/{digest}", "*/*")
        if _digest(content) != digest:
            raise ImageError(f"{self._name.host} sent another blob than {digest} of {self._name.full}")
        return content

    def referrers(self, digest: str) -> Sequence[Mapping[str, Any]]:
        """Descriptors of what refers to the image, by the API or, where a registry lacks it, by the fallback tag."""
        try:
            content = self._get(f"referrers/{digest}", "application/vnd.oci.image.index.v1+json")
        except NotThere:
            try:
                content = self._get(f"manifests/{digest.replace(':', '-')}", ACCEPT)
            except NotThere:
                return ()
        found = Document(content, _digest(content)).json().get("manifests")
        return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else ()

    def _get(self, path: str, accept: str) -> bytes:
        failure = ImageError(f"the registry {self._name.host} cannot be asked")
        for base in self._bases:
            try:
                with self._ask(urljoin(base, f"v2/{self._name.repository}/{path}"), accept) as response:
                    if response.status_code == 200:
                        return _bounded(response)
                    if response.status_code == 404:
                        failure = NotThere(f"{self._name.full} has no {path.partition('/')[2]}")
                    else:
                        text = f"{self._name.host} answered HTTP {response.status_code} for {self._name.full}"
                        failure = ImageError(text)
            except requests.exceptions.RequestException as exc:
                if not isinstance(failure, NotThere):
                    failure = ImageError(f"the registry {self._name.host} cannot be asked ({type(exc).__name__})")
        raise failure

    def _ask(self, url: str, accept: str) -> requests.Response:
        response = self._send(url, accept)
        if response.status_code != 401 or urlsplit(url).netloc != self._name.host:
            return response  # a mirror gets no login
        with response:
            self._authorization = self._sign_in(response.headers.get("www-authenticate", ""), url)
        return self._send(url, accept)

    def _send(self, url: str, accept: str) -> requests.Response:
        headers = {"Accept": accept}
        if self._authorization and urlsplit(url).netloc == self._name.host:
            headers["Authorization"] = self._authorization
        return self._session.get(url, headers=headers, timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S), stream=True)

    def _sign_in(self, challenge: str, url: str) -> str:
        """The header that answers a challenge (RFC 9110 section 11, and the registries' token protocol)."""
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            if self._login is None:
                raise ImageError(f"{self._name.host} wants a login for {self._name.full}; see: docker login")
            return str(requests.Request("GET", url, auth=self._login[:2]).prepare().headers["Authorization"])
        if scheme.lower() != "bearer":
            raise ImageError(f"{self._name.host} wants a kind of login that is not known here")
        return f"Bearer {self._token(dict(_PARAMETER.findall(rest)))}"

    def _token(self, asked: Mapping[str, str]) -> str:
        realm = asked.get("realm", "")
        if urlsplit(realm).scheme != "https" and not self._insecure:
            raise ImageError(f"{self._name.host} wants logins sent without encryption")
        fields = {"service": asked.get("service", ""), "scope": f"repository:{self._name.repository}:pull"}
        timeout = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)
        try:
            if self._login is not None and self._login.identity_token:
                form = {**fields, "grant_type": "refresh_token", "refresh_token": self._login.identity_token}
                response = self._session.post(
                    realm, data={**form, "client_id": "lockgate"}, timeout=timeout, stream=True
                )
            else:
                login = self._login[:2] if self._login is not None else _as_it_is
                query = f"{realm}?{urlencode(fields)}"
                response = self._session.get(query, auth=login, timeout=timeout, stream=True)
            with response:
                if response.status_code != 200:
                    raise ImageError(f"{self._name.host} refused the login (HTTP {response.status_code})")
                answer = Document(_bounded(response), "of the login").json()
        except requests.exceptions.RequestException as exc:
            raise ImageError(f"{self._name.host}: its login service cannot be asked ({type(exc).__name__})") from exc
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or not token.isprintable():
            raise ImageError(f"{self._name.host} gave no token")
        return token


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _bounded(response: requests.Response) -> bytes:
    parts, size = [], 0
    for part in response.iter_content(64 * 1024):
        size += len(part)
        if size > MAX_BYTES:
            raise ImageError(f"the registry sent more than {MAX_BYTES} bytes")
        parts.append(part)
    return b"".join(parts)


def _digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"
