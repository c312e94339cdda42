"""HashiCorp Vault and OpenBao as a store of secrets: their KV engine, version 2, over HTTP.

Knows how to log in there and what its answers mean; not who needs a secret. Everything here blocks: it is called in
worker threads."""

from __future__ import annotations

import http.client
import json
import re
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import parse_qsl, quote, urlsplit

from catalog.reference import is_loopback
from gateway.errors import SecretsError, SettingsError
from gateway.secrets import MAX_SECRET_BYTES, SecretValue, value_of

TOKEN: Final = "openbao.token"  # noqa: S105  # a name, as the next two
ROLE_ID: Final = "openbao.role_id"
SECRET_ID: Final = "openbao.secret_id"  # noqa: S105
OPTIONS: Final = ("namespace", "ca", "approle")
REQUEST_S: Final = 10.0
WHOLE_S: Final = 25.0
"""How long one secret may take, with every try."""
PAUSES_S: Final = (0.25, 1.0, 2.0)
"""Before each further try, where the server does not say how long to wait."""
AGAIN: Final = frozenset({412, 429, 500, 502, 503, 504})
"""Answers that may be others in a moment (412: a standby that has not seen the last write)."""
MAX_BODY_BYTES: Final = 16 * MAX_SECRET_BYTES
"""A secret of the engine has many fields."""
_HEADER: Final = re.compile(r"[!-~]{1,4096}")

Find = Callable[[str], SecretValue | None]


class _Answer(NamedTuple):
    status: int
    body: bytes
    wait_s: float | None = None
    """How long to wait before another try, if it says so."""

    def says(self, words: bytes) -> bool:
        """Whether it is an error of these words; they are compared and never shown."""
        return words in self.body[:4096]

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError):
            return None


class BaoSecrets:
    """`brave.api_key` is the field `api_key` of the secret `brave` below the path.

    It is asked with the token that is the secret `openbao.token` of a store before it, or, with `approle=`, with one
    that it logs in for, by the secrets `openbao.role_id` and `openbao.secret_id`, and again when that ends.
    """

    def __init__(self, url: str, find: Find, pause: Callable[[float], None] = time.sleep) -> None:
        """`url` is that of the server with the engine's mount, and perhaps a folder in it, as its path, and options as
        its query.

        Raises:
            SettingsError: it is none, or would send the token unencrypted.
        """
        parts = urlsplit(url)
        path = parts.path.strip("/")
        if parts.scheme not in ("http", "https") or not parts.hostname or not path or parts.username or parts.fragment:
            raise SettingsError("LOCKGATE_STORES: give openbao:https://host:8200/MOUNT or …/MOUNT/FOLDER")
        if parts.scheme == "http" and not is_loopback(parts.hostname):
            raise SettingsError(f"LOCKGATE_STORES: {parts.hostname} would be sent the token unencrypted; use https")
        options = _options(parts.query)
        self._host, self._port = parts.hostname, _port(parts.netloc, url)
        self._tls = _context(options.get("ca")) if parts.scheme == "https" else None
        self._namespace = options.get("namespace", "").strip("/")
        self._approle = options.get("approle", "").strip("/")
        self._path = path
        self._mount = ""
        """The part of the path that is the engine's, once the server has said so."""
        self._find = find
        self._pause = pause
        self._logging_in = threading.Lock()
        self._login: tuple[str, float] = ("", 0.0)
        """The token of the last login and until when it is good."""

    def get(self, name: str, owner: str = "") -> SecretValue | None:
        if owner or name in (TOKEN, ROLE_ID, SECRET_ID):
            return None
        until = time.monotonic() + WHOLE_S
        item, field = parts_of(name, "value")
        mount, folder = self._place(name, until)
        path = f"/v1/{quote(mount)}/data/{quote(folder + item)}"
        answer = self._read(path, name, until)
        if (
            answer.status == 404
            and not answer.says(b"no handler for route")
            and not answer.says(b"namespace not found")
        ):
            return None  # also a version that was deleted
        if answer.status != 200:
            raise SecretsError(self._refusal(answer, name, path))
        try:
            value = answer.json()["data"]["data"].get(field)
        except (KeyError, TypeError, AttributeError):
            raise SecretsError(f"{self._host} did not answer with a secret of the KV engine, version 2") from None
        if value is not None and not isinstance(value, str):
            raise SecretsError(f"the secret {name} at {self._host} is no text")
        return None if value is None else value_of(name, value.encode())

    def how_to_set(self, name: str) -> str:
        item, field = parts_of(name, "value")
        return f"write the field {field} of {self._path}/{item} at {self._host}"

    # -- the engine ----------------------------------------------------------------------------------

    def _place(self, name: str, until: float) -> tuple[str, str]:
        """The engine's mount, which may have slashes in it, and the folder in it.

        Raises:
            SecretsError: there is another engine, or the server does not answer.
        """
        if not self._mount:
            answer = self._read(f"/v1/sys/internal/ui/mounts/{quote(self._path)}", name, until)
            if answer.status == 200:
                found = answer.json()
                data = found.get("data") if isinstance(found, dict) else None
                data = data if isinstance(data, dict) else {}
                options = data.get("options")
                if data.get("type") != "kv" or not isinstance(options, dict) or options.get("version") != "2":
                    raise SecretsError(f"{self._path} at {self._host} is no secrets engine KV, version 2")
                self._mount = str(data.get("path", "")).strip("/")
            elif answer.status not in (403, 404):
                raise SecretsError(self._refusal(answer, name, self._path))
        # Who may read a secret need not be told of its engine.
        mount = self._mount or self._path.partition("/")[0]
        folder = self._path.removeprefix(mount).strip("/")
        return mount, f"{folder}/" if folder else ""

    def _read(self, path: str, name: str, until: float) -> _Answer:
        token = self._token(name, until)
        answer = self._ask("GET", path, token, None, until)
        if answer.status == 403 and self._approle and not self._is_good(token, until):
            with self._logging_in:
                if self._login[0] == token:
                    self._login = ("", 0.0)
            answer = self._ask("GET", path, self._token(name, until), None, until)
        return answer

    def _is_good(self, token: str, until: float) -> bool:
        """Whether a token that may not read something is one at all: each login may use up a secret id."""
        return self._ask("GET", "/v1/auth/token/lookup-self", token, None, until).status == 200

    def _refusal(self, answer: _Answer, name: str, path: str) -> str:
        """Why a secret could not be read, and what to do."""
        asked = f"{self._host} answered {answer.status} when asked for {name}"
        match answer.status:
            case 403:
                who = "its role" if self._approle else f"the token in {TOKEN}"
                return f"{asked}: {who} may not read {path}, or is no longer good"
            case 404 if answer.says(b"namespace not found"):
                return f"{asked}: there is no namespace {self._namespace}"
            case 404:
                return f"{asked}: there is no secrets engine at {path.removeprefix('/v1/').partition('/data/')[0]}"
            case 429:
                return f"{asked}: too many requests; try again later"
            case 503 if answer.says(b"sealed"):
                return f"{asked}: it is sealed; unseal it: bao operator unseal, or vault operator unseal"
            case 501:
                return f"{asked}: it is not initialized: bao operator init, or vault operator init"
            case status if 300 <= status < 400:
                return (
                    f"{asked}: it sends elsewhere, which is not followed; give the address of the node that is active"
                )
            case status if status >= 500:
                return f"{asked}: it is in trouble; look at its log"
        return asked

    # -- logging in ----------------------------------------------------------------------------------

    def _token(self, name: str, until: float) -> str:
        """
        Raises:
            SecretsError: there is none, or the login failed.
        """
        if not self._approle:
            return self._needed(TOKEN, name)
        with self._logging_in:
            token, good_until = self._login
            if not token or time.monotonic() >= good_until:
                token, seconds = self._log_in(name, until)
                self._login = (token, time.monotonic() + 0.9 * seconds)
        return token

    def _log_in(self, name: str, until: float) -> tuple[str, float]:
        """A token, and for how many seconds it is good."""
        wish = {"role_id": self._needed(ROLE_ID, name)}
        secret_id = self._find(SECRET_ID)
        if secret_id is not None:  # a role may do without
            wish["secret_id"] = secret_id.reveal().decode()
        path = f"/v1/auth/{quote(self._approle)}/login"
        answer = self._ask("POST", path, "", json.dumps(wish).encode(), until)
        if answer.status in (400, 403):
            raise SecretsError(
                f"{self._host} refused the login ({answer.status}): {ROLE_ID} or {SECRET_ID} is wrong, expired or used "
                f"up, or there is no AppRole at auth/{self._approle}"
            )
        if answer.status != 200:
            raise SecretsError(self._refusal(answer, name, path))
        try:
            auth = answer.json()["auth"]
            token, seconds = str(auth["client_token"]), float(auth["lease_duration"])
        except (KeyError, TypeError, ValueError):
            raise SecretsError(f"{self._host} did not answer the login with a token") from None
        return token, seconds or 86400.0  # 0: it does not end

    def _needed(self, own: str, name: str) -> str:
        found = self._find(own)
        if found is None:
            raise SecretsError(f"{self._host} wants a login to look {name} up: lockgate secret set {own}")
        return found.reveal().decode()

    # -- HTTP ----------------------------------------------------------------------------------------

    def _ask(self, method: str, path: str, token: str, body: bytes | None, until: float) -> _Answer:
        """One request, again while the answer may be another one in a moment.

        Raises:
            SecretsError: nothing answers, or nothing that can be trusted.
        """
        headers = {"X-Vault-Request": "true"}
        if token:
            if not _HEADER.fullmatch(token):
                raise SecretsError(f"the secret {TOKEN} is no token: it has characters that no token has")
            headers["X-Vault-Token"] = token
        if self._namespace:
            headers["X-Vault-Namespace"] = self._namespace
        answer, failure = None, ""
        for usual in (*PAUSES_S, None):
            try:
                answer = self._send(method, path, headers, body, min(REQUEST_S, max(until - time.monotonic(), 0.1)))
            except ssl.SSLCertVerificationError as exc:
                raise SecretsError(
                    f"{self._host} is not trusted: {exc.verify_message}; name its authority: …?ca=/path/of/ca.pem"
                ) from None
            except (OSError, http.client.HTTPException, ValueError) as exc:
                answer, failure = None, type(exc).__name__
            if answer is not None and (answer.status not in AGAIN or answer.says(b"sealed")):
                return answer
            pause = usual if answer is None or usual is None or answer.wait_s is None else answer.wait_s
            if pause is None or time.monotonic() + pause >= until:
                break
            self._pause(pause)
        if answer is None:
            raise SecretsError(f"{self._host} does not answer ({failure})")
        return answer

    def _send(
        self, method: str, path: str, headers: Mapping[str, str], body: bytes | None, timeout_s: float
    ) -> _Answer:
        connection = (
            http.client.HTTPSConnection(self._host, self._port, timeout=timeout_s, context=self._tls)
            if self._tls is not None
            else http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
        )
        try:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            found = answer.read(MAX_BODY_BYTES + 1)
        finally:
            connection.close()
        if len(found) > MAX_BODY_BYTES:
            raise SecretsError(f"{self._host} answered more than a secret may hold")
        wait = answer.headers.get("Retry-After", "")
        return _Answer(answer.status, found, float(wait) if re.fullmatch("[0-9]{1,6}", wait) else None)


def _options(query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=True) if query else []
    except ValueError:
        pairs = [("", "")]
    options = dict(pairs)
    if len(options) < len(pairs) or not options.keys() <= set(OPTIONS) or not all(options.values()):
        raise SettingsError(f"LOCKGATE_STORES: the options of openbao: are {', '.join(OPTIONS)}, each with a value")
    if not _HEADER.fullmatch(options.get("namespace", "-")):
        raise SettingsError("LOCKGATE_STORES: namespace is no name of one")
    return options


def _port(netloc: str, url: str) -> int | None:
    try:
        return urlsplit(url).port
    except ValueError as exc:
        raise SettingsError(f"LOCKGATE_STORES: {netloc} has no port that there is") from exc


def _context(ca: str | None) -> ssl.SSLContext:
    """Trusts this one authority, or those of the system."""
    try:
        return ssl.create_default_context(cafile=str(Path(ca).expanduser()) if ca else None)
    except OSError as exc:  # also what ssl says of a file without certificates
        raise SettingsError(f"LOCKGATE_STORES: ca={ca} cannot be read as certificates (PEM)") from exc


def parts_of(name: str, alone: str) -> tuple[str, str]:
    """What stands before and after the last dot or slash of a name; the field of a name without one is `alone`."""
    item, *field = re.split(r"[./](?=[^./]*$)", name, maxsplit=1)
    return item, field[0] if field else alone
