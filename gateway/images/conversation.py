"""Talking to one repository of a container registry over HTTP: where it is, the user's login, and its tokens.

Knows no documents and no paths below the repository's own; registry.py does."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, Literal, TypeAlias
from urllib.parse import urlencode, urljoin, urlsplit

import msgspec
import requests

from catalog import reference
from gateway.errors import ImageError
from gateway.images.logins import Login
from gateway.images.names import HUB, ImageName
from gateway.images.reachability import split_address

CONNECT_TIMEOUT_S: Final = 5.0
READ_TIMEOUT_S: Final = 30.0
"""Between two parts of one answer."""
MAX_TOKEN_BYTES: Final = 64 * 1024
_PARAMETER: Final = re.compile(r'([a-z]+)="([^"]*)"')

Right = Literal["pull", "pull,push"]
Body: TypeAlias = bytes | Iterable[bytes]


class Conversation:
    """One repository of one registry, or mirrors of it. Use it in one thread, and close it."""

    def __init__(
        self, name: ImageName, login: Login | None, *, insecure: bool = False, mirrors: Sequence[str] = ()
    ) -> None:
        """`insecure` allows HTTP where there is no TLS; `mirrors` are the URLs to ask before Docker Hub, in order."""
        self.name = name
        self._login = login
        self._bases = [f"https://{name.host}/"] + ([f"http://{name.host}/"] if insecure else [])
        self._mirrors = [f"{mirror.rstrip('/')}/" for mirror in mirrors] if name.registry == HUB else []
        self._insecure = insecure
        self._certificate = _certificate_of(name.host)
        self._session = requests.Session()
        self._session.auth = _as_it_is  # else the user's .netrc would be sent
        self._session.headers["Accept-Encoding"] = "identity"  # digests and ranges are of what is stored
        self._authorizations: dict[str, str] = {}
        """The header for each scope that was asked for."""

    def close(self) -> None:
        self._session.close()

    def read(self, path: str, headers: Mapping[str, str]) -> requests.Response:
        """GET something of the repository: from the first mirror that has it, else from the registry. To be closed.

        Raises:
            ImageError: nobody can be asked.
        """
        for mirror in self._mirrors:
            try:
                response = self.send("GET", f"{mirror}v2/{self.name.repository}/{path}", headers=headers)
            except ImageError:
                continue
            if response.status_code < 300:
                return response
            response.close()
        return self.ask("GET", path, headers=headers)

    def give_up_mirrors(self) -> bool:
        """One of them sent what it should not have: from now on only the registry is asked. Whether that is new."""
        mirrors, self._mirrors = self._mirrors, []
        return bool(mirrors)

    def ask(
        self,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        right: Right = "pull",
        also: str = "",
    ) -> requests.Response:
        """Send a request to the registry itself; `also` is a second repository that has to be read for it.

        Raises:
            ImageError: it cannot be asked, or refuses the login.
        """
        failure = ImageError(f"the registry {self.name.host} cannot be asked")
        for base in list(self._bases):
            url = urljoin(base, f"v2/{self.name.repository}/{path}")
            try:
                response = self.send(method, url, headers=headers, body=body, right=right, also=also)
            except _Untrusted:
                raise
            except ImageError as exc:
                failure = exc
                continue
            self._bases = [base]  # from now on: a registry speaks one of them
            return response
        raise failure

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        right: Right = "pull",
        also: str = "",
    ) -> requests.Response:
        """The same to a whole URL, as registries give them for uploads. Only the registry's own host gets the login."""
        ours = urlsplit(url).netloc == self.name.host
        if not ours and right != "pull" and urlsplit(url).scheme != "https":
            raise ImageError(f"{self.name.host} sends uploads to another place without encryption")
        scopes = [f"repository:{self.name.repository}:{right}"] + ([f"repository:{also}:pull"] if also else [])
        key = " ".join(scopes)
        response = self._once(method, url, headers, body, self._authorizations.get(key, "") if ours else "")
        if response.status_code != 401 or not ours:
            return response  # a mirror gets no login
        with response:
            answer = self._sign_in(response.headers.get("www-authenticate", ""), url, scopes)
        self._authorizations[key] = answer
        response = self._once(method, url, headers, body, answer)
        if response.status_code == 401:
            response.close()
            raise ImageError(
                f"{self.name.host} refused the login for {self.name.full}: the password or token is wrong, has "
                "expired, or does not open this repository; see: docker login"
            )
        return response

    def _once(
        self, method: str, url: str, headers: Mapping[str, str] | None, body: Body | None, authorization: str
    ) -> requests.Response:
        sent = dict(headers or {})
        if authorization:
            sent["Authorization"] = authorization
        try:
            return self._session.request(
                method,
                url,
                headers=sent,
                data=body,
                timeout=(CONNECT_TIMEOUT_S, READ_TIMEOUT_S),
                stream=True,
                allow_redirects=method in ("GET", "HEAD"),
                verify=self._certificate if self._certificate and urlsplit(url).netloc == self.name.host else None,
            )
        except requests.exceptions.SSLError as exc:
            if "CERTIFICATE_VERIFY_FAILED" in str(exc):
                raise _Untrusted(
                    f"the registry {self.name.host} shows a certificate that nobody known here vouches for; put its "
                    f"authority into ~/.config/docker/certs.d/{self.name.host}/ca.crt"
                ) from exc
            raise self._unasked(exc) from exc
        except (requests.exceptions.RequestException, OSError) as exc:
            raise self._unasked(exc) from exc

    def _unasked(self, exc: Exception) -> ImageError:
        return ImageError(f"the registry {self.name.host} cannot be asked ({type(exc).__name__})")

    # -- logins ------------------------------------------------------------------------------

    def _sign_in(self, challenge: str, url: str, scopes: list[str]) -> str:
        """The header that answers a challenge (RFC 9110 section 11, and the registries' token protocol)."""
        scheme, _, rest = challenge.partition(" ")
        if scheme.lower() == "basic":
            if self._login is None:
                raise ImageError(f"{self.name.host} wants a login for {self.name.full}; see: docker login")
            return str(requests.Request("GET", url, auth=self._login[:2]).prepare().headers["Authorization"])
        if scheme.lower() != "bearer":
            raise ImageError(f"{self.name.host} wants a kind of login that is not known here")
        return f"Bearer {self._token(dict(_PARAMETER.findall(rest)), scopes)}"

    def _token(self, asked: Mapping[str, str], scopes: list[str]) -> str:
        realm = asked.get("realm", "")
        if urlsplit(realm).scheme != "https" and not self._insecure:
            raise ImageError(f"{self.name.host} wants logins sent without encryption")
        service = asked.get("service", "")
        try:
            if self._login is not None and self._login.identity_token:
                form = {"service": service, "scope": " ".join(scopes), "client_id": "lockgate"}
                form |= {"grant_type": "refresh_token", "refresh_token": self._login.identity_token}
                response = self._session.post(realm, data=form, timeout=_TIMEOUTS, stream=True)
            else:
                login = self._login[:2] if self._login is not None else _as_it_is
                query = urlencode([("service", service), *(("scope", scope) for scope in scopes)])
                response = self._session.get(f"{realm}?{query}", auth=login, timeout=_TIMEOUTS, stream=True)
            with response:
                if response.status_code != 200:
                    raise ImageError(f"{self.name.host} refused the login (HTTP {response.status_code})")
                answer = response.raw.read(MAX_TOKEN_BYTES, decode_content=True)
        except (requests.exceptions.RequestException, OSError) as exc:
            raise ImageError(f"{self.name.host}: its login service cannot be asked ({type(exc).__name__})") from exc
        try:
            found = msgspec.json.decode(answer, type=dict[str, object])
        except msgspec.DecodeError as exc:
            raise ImageError(f"{self.name.host} gave no token") from exc
        token = found.get("token") or found.get("access_token")
        if not isinstance(token, str) or not token.isprintable():
            raise ImageError(f"{self.name.host} gave no token")
        return token


_TIMEOUTS: Final = (CONNECT_TIMEOUT_S, READ_TIMEOUT_S)


class _Untrusted(ImageError):
    """TLS is there and cannot be trusted: HTTP does not take its place."""


def is_loopback(host: str) -> bool:
    """Whether a registry is on this machine, where Docker too does without TLS."""
    return reference.is_loopback(split_address(host, 443)[0])


def _certificate_of(host: str) -> str:
    """The authority that Docker's own folders name for a registry, if they name one."""
    for folder in (Path(os.path.expanduser("~/.config/docker")), Path("/etc/docker")):
        path = folder / "certs.d" / host / "ca.crt"
        if path.is_file():
            return str(path)
    return ""


def _as_it_is(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request
