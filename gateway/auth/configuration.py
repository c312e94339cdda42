"""How callers sign in: the file that `LOCKGATE_AUTH` names, or one of its words.

Knows names and rules; fetches nothing and holds no secret."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from gateway.auth.resources import SCOPES
from gateway.auth.urls import check_url
from gateway.errors import SettingsError

RESERVED: Final = frozenset({"local", "key", "user", "client"})
"""Beginnings of principals of our own."""
MAX_FILE_BYTES: Final = 256 * 1024


def _check_scope(scope: str) -> str:
    if scope not in SCOPES:
        raise ValueError(f"is not a scope; there are {', '.join(SCOPES)}")
    return scope


Url = Annotated[str, StringConstraints(max_length=1024), AfterValidator(check_url)]
Scope = Annotated[str, AfterValidator(_check_scope)]
Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,31}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Algorithm = Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"]
"""Public-key signatures only: with HS* whoever can check a token can make one."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Issuer(_Part):
    """A provider whose access tokens are taken."""

    name: Name
    """The beginning of its users' principals: `NAME:subject`."""
    issuer: Url
    """Exactly as it stands in its tokens."""
    audiences: Annotated[tuple[Text, ...], Field(max_length=16)] = ()
    """What its tokens may be addressed to beside the endpoint's own URL, for providers without RFC 8707."""
    algorithms: Annotated[tuple[Algorithm, ...], Field(min_length=1)] = ("RS256", "PS256", "ES256", "EdDSA", "Ed25519")
    types: Annotated[tuple[Literal["at+jwt", "JWT"], ...], Field(min_length=1)] = ("at+jwt",)
    """`typ` of its access tokens; `JWT` also admits ID tokens that are addressed to us."""
    groups_claim: Text = "groups"
    groups: dict[Text, Text] = {}
    """What a value of that claim is called here; values that are not listed give no group."""
    scopes: dict[Text, tuple[Scope, ...]] = {}
    """What a scope of its own opens here, beside scopes that are called as ours are."""
    grant: tuple[Scope, ...] = ()
    """Scopes that every one of its tokens has."""
    require: dict[Text, Text] = {}
    """Claims that a token must have with exactly this value."""


class Login(_Part):
    """An OpenID provider at which people sign in on our pages."""

    name: Name
    issuer: Url
    client_id: Text
    client_secret: Text = ""
    """The name of the secret, or nothing for a public client."""
    scopes: tuple[Text, ...] = ("openid",)
    groups_claim: Text = "groups"
    groups: dict[Text, Text] = {}
    again_after_h: Annotated[int, Field(ge=1, le=720)] = 24
    """So many hours after its user allowed a client, that client has to ask again, and the provider with it."""


class Configuration(_Part):
    """Everything about signing in that an operator decides."""

    accounts: bool = False
    """People sign in at this gateway, and clients get tokens from it."""
    issuers: Annotated[tuple[Issuer, ...], Field(max_length=16)] = ()
    login: Login | None = None
    client_hosts: Annotated[tuple[Text, ...], Field(max_length=64)] = ()
    """Hosts whose client metadata documents are taken; any public host if there is none."""
    client_loopback: bool = False
    """Also take client metadata documents from this machine, for trying things out."""
    open_registration: bool = True
    """Let clients register themselves (RFC 7591), as older ones need."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [one.name for one in self.issuers] + ([self.login.name] if self.login else [])
        urls = [one.issuer for one in self.issuers]
        if len(set(names)) < len(names) or len(set(urls)) < len(urls):
            raise ValueError("each provider has a name and an issuer of its own")
        if taken := RESERVED & set(names):
            raise ValueError(f"{', '.join(sorted(taken))}: reserved, choose another name for the provider")
        if self.login and not self.accounts:
            raise ValueError("login needs accounts = true")
        return self


def read_configuration(auth: str) -> Configuration | None:
    """What `LOCKGATE_AUTH` says; None if nobody is asked to sign in.

    Raises:
        SettingsError: the file cannot be read, or breaks rules; all of them at once.
    """
    match auth:
        case "off":
            return None
        case "keys":
            return Configuration()
        case "accounts":
            return Configuration(accounts=True)
    path = Path(auth)
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES + 1)
        if len(text) > MAX_FILE_BYTES:
            raise SettingsError(f"LOCKGATE_AUTH: {path} is over {MAX_FILE_BYTES} bytes")
        found = tomllib.loads(text.decode())
    except OSError as exc:
        raise SettingsError(f"LOCKGATE_AUTH: {path} cannot be read: {exc.strerror}") from exc
    except ValueError as exc:
        raise SettingsError(f"LOCKGATE_AUTH: {path} is not TOML: {exc}") from exc
    try:
        return Configuration.model_validate(found)
    except ValidationError as exc:
        lines = [f"{path}: {'.'.join(map(str, e['loc'])) or 'file'}: {_reason(e['msg'])}" for e in exc.errors()]
        raise SettingsError("\n".join(lines)) from None


def _reason(message: str) -> str:
    return message.removeprefix("Value error, ")
