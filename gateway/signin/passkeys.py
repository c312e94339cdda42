"""Passkeys (WebAuthn): credentials of accounts that stay on people's devices, and what proves that one was used.

Knows credentials and challenges; not pages. The library checks what an authenticator says."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import secrets
import time
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from gateway.auth.keys import check_word
from gateway.database import Database
from gateway.errors import SettingsError
from gateway.signin.tables import passkeys

MAX_OF_ACCOUNT: Final = 20
TIMEOUT_MS: Final = 120_000
CHALLENGE_BYTES: Final = 32


@dataclass(frozen=True)
class Place:
    """Where a browser uses passkeys: the name that they belong to, and the origin of the page."""

    name: str
    origin: str


@dataclass(frozen=True)
class Passkey:
    """One passkey of an account."""

    id: str
    account: str
    name: str
    created_at: float
    used_at: float | None


class PasskeyRefused(Exception):
    """What a browser sent proves nothing; the message says why, for the audit file."""


def place_of(bases: tuple[str, ...], host: str) -> Place | None:
    """Where a browser is that asked for `host`, one of the names of this gateway; None if it knows no passkeys there.

    Whatever the request says beyond that has no say: a passkey belongs to a name that the operator gave."""
    url = next((base for base in bases if urlsplit(base).netloc == host), bases[0])
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        # Without TLS only this machine's own name will do.
        return Place(host, url) if parts.scheme == "https" or host == "localhost" else None
    return None


def challenge() -> str:
    return secrets.token_bytes(CHALLENGE_BYTES).hex()


def handle(account: str) -> bytes:
    """What stands for an account on the device."""
    return hashlib.sha256(f"lockgate account {account}".encode()).digest()


class Passkeys:
    """The passkeys of one database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def of(self, account: str) -> list[Passkey]:
        async with self._database.begin() as connection:
            where = passkeys.c.account == account
            rows = await connection.execute(select(passkeys).where(where).order_by(passkeys.c.created_at))
            return [_passkey(row) for row in rows]

    async def remove(self, account: str, name: str) -> None:
        """
        Raises:
            SettingsError: the account has none of this name.
        """
        async with self._database.begin() as connection:
            where = (passkeys.c.account == account) & (passkeys.c.name == name)
            if (await connection.execute(delete(passkeys).where(where))).rowcount != 1:
                raise SettingsError(f"{account} has no passkey {name!r}; `lockgate user passkeys {account}` names them")

    # -- a new one -----------------------------------------------------------------------------------

    async def creation(self, place: Place, account: str, challenge: str) -> str:
        """The options with which a browser makes a passkey, as JSON."""
        from webauthn import generate_registration_options, options_to_json
        from webauthn.helpers import structs

        async with self._database.begin() as connection:
            known = await connection.execute(select(passkeys.c.id).where(passkeys.c.account == account))
            exclude = [structs.PublicKeyCredentialDescriptor(id=bytes.fromhex(row.id)) for row in known]
        options = generate_registration_options(
            rp_id=place.name,
            rp_name="Lockgate",
            user_name=account,
            user_id=handle(account),
            challenge=bytes.fromhex(challenge),
            timeout=TIMEOUT_MS,
            authenticator_selection=structs.AuthenticatorSelectionCriteria(
                resident_key=structs.ResidentKeyRequirement.REQUIRED,
                user_verification=structs.UserVerificationRequirement.REQUIRED,
            ),
            exclude_credentials=exclude,
        )
        return options_to_json(options)

    async def add(self, place: Place, account: str, name: str, challenge: str, credential: str) -> None:
        """Keep the passkey that a browser made.

        Raises:
            PasskeyRefused: it is not what was asked for.
            SettingsError: the name will not do or is taken, or the account has too many.
        """
        from webauthn import verify_registration_response

        check_word(name, "passkey")
        try:
            made = verify_registration_response(
                credential=_object(credential),
                expected_challenge=bytes.fromhex(challenge),
                expected_rp_id=place.name,
                expected_origin=place.origin,
                require_user_verification=True,
            )
        except Exception as exc:
            raise PasskeyRefused(f"the new passkey will not do ({type(exc).__name__})") from exc
        row = {
            "id": made.credential_id.hex(),
            "account": account,
            "name": name,
            "public_key": made.credential_public_key.hex(),
            "sign_count": made.sign_count,
            "created_at": time.time(),
        }
        try:
            async with self._database.begin() as connection:
                where = passkeys.c.account == account
                count = select(func.count()).select_from(passkeys).where(where)
                if (await connection.execute(count)).scalar_one() >= MAX_OF_ACCOUNT:
                    raise SettingsError(f"{account} has {MAX_OF_ACCOUNT} passkeys; remove one first")
                await connection.execute(insert(passkeys).values(row))
        except IntegrityError as exc:
            raise SettingsError(f"there is a passkey {name!r} already, or this device has one") from exc

    # -- signing in ----------------------------------------------------------------------------------

    def request(self, place: Place, challenge: str) -> str:
        """The options with which a browser uses any passkey that it has for this place, as JSON."""
        from webauthn import generate_authentication_options, options_to_json
        from webauthn.helpers.structs import UserVerificationRequirement

        options = generate_authentication_options(
            rp_id=place.name,
            challenge=bytes.fromhex(challenge),
            timeout=TIMEOUT_MS,
            user_verification=UserVerificationRequirement.REQUIRED,
        )
        return options_to_json(options)

    async def prove(self, place: Place, challenge: str, credential: str) -> str:
        """The account whose passkey a browser used for this challenge.

        Raises:
            PasskeyRefused: none was, or not rightly.
        """
        from webauthn import base64url_to_bytes, verify_authentication_response

        given = _object(credential)
        try:
            id = base64url_to_bytes(given["rawId"]).hex()
            user = base64url_to_bytes(given["response"]["userHandle"])
        except (KeyError, TypeError, ValueError, AttributeError) as exc:
            raise PasskeyRefused("the answer is none of a passkey") from exc
        async with self._database.begin() as connection:
            row = (await connection.execute(select(passkeys).where(passkeys.c.id == id[:2048]))).first()
        if row is None:
            raise PasskeyRefused("the passkey is not known")
        if not hmac.compare_digest(user, handle(row.account)):
            raise PasskeyRefused("the passkey is of another account")
        try:
            used = verify_authentication_response(
                credential=given,
                expected_challenge=bytes.fromhex(challenge),
                expected_rp_id=place.name,
                expected_origin=place.origin,
                credential_public_key=bytes.fromhex(row.public_key),
                credential_current_sign_count=row.sign_count,
                require_user_verification=True,
            )
        except Exception as exc:
            raise PasskeyRefused(f"the passkey {row.name} was not used rightly ({type(exc).__name__})") from exc
        async with self._database.begin() as connection:
            # Two answers with one count: the second is of a copy.
            where = (passkeys.c.id == row.id) & (passkeys.c.sign_count == row.sign_count)
            values = {"sign_count": used.new_sign_count, "used_at": time.time()}
            if (await connection.execute(update(passkeys).where(where).values(values))).rowcount != 1:
                raise PasskeyRefused(f"the passkey {row.name} was used twice at once, or removed")
        return str(row.account)


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise PasskeyRefused("the answer is not JSON") from exc
    if not isinstance(value, dict):
        raise PasskeyRefused("the answer is no JSON object")
    return value


def _passkey(row: Row[Any]) -> Passkey:
    return Passkey(row.id, row.account, row.name, row.created_at, row.used_at)
