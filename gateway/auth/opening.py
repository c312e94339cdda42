"""Putting the gate together for one listener: names, trusted issuers, API keys.

Knows every part of this package; nothing else does."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from gateway.auth.authenticator import Authenticator, External, Trusted
from gateway.auth.configuration import Configuration, Issuer
from gateway.auth.fetch import Fetcher, Reach
from gateway.auth.guard import Guard
from gateway.auth.issuers import IssuerKeys
from gateway.auth.keys import Keys
from gateway.auth.resources import Names, loopback_names
from gateway.auth.urls import LOOPBACK

if TYPE_CHECKING:
    from gateway.audit import Audit
    from gateway.database import Database
    from gateway.settings import Settings


def names_of(settings: Settings, port: int) -> Names:
    """What a gateway with these settings is called once it listens on `port`."""
    own = settings.url_at(port)
    others = loopback_names(port, urlsplit(own).scheme) if settings.is_loopback and not settings.public_url else ()
    base = settings.public_url.rstrip("/") or own
    return Names(base, tuple(one for one in others if one != base))


def open_guard(
    configuration: Configuration,
    names: Names,
    database: Database,
    audit: Audit,
    admin_token: str,
    own: Trusted | None = None,
) -> Guard:
    """The gate in front of a gateway that asks callers to sign in; `own` are the tokens that it issues itself."""
    trusted: dict[str, Trusted] = {one.issuer: _external(one) for one in configuration.issuers}
    if own is not None:
        trusted = {**trusted, names.base: own}
    authenticator = Authenticator(Keys(database), trusted, admin_token)
    return Guard(authenticator, names, tuple(sorted(trusted, key=lambda one: one != names.base)), audit)


def _external(issuer: Issuer) -> External:
    return External(issuer, IssuerKeys(issuer.issuer, fetcher_for(issuer.issuer), time.monotonic))


def fetcher_for(issuer: str) -> Fetcher:
    """For a provider that the operator named: it may be in a private network, or here if its own address is."""
    return Fetcher(Reach(private=True, loopback=urlsplit(issuer).hostname in LOOPBACK))
