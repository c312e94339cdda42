"""Whose credential a call takes with it: a caller's own secrets, or the shared ones.

Knows the vault's list of owners; no value and no connection. It is asked for every call, so it answers in a few
dictionary look-ups."""

from __future__ import annotations

from collections.abc import Mapping

from catalog import Entry
from gateway.connections import NOBODY, Credential
from gateway.errors import CredentialMissing, TokenRefused
from gateway.oauth.signins import Signins, signs_in
from gateway.vault import SECRET, Vault


class Credentials:
    """Tells connections apart: two callers share one only if what it holds is the same for both."""

    def __init__(self, vault: Vault, signins: Signins | None = None) -> None:
        self._vault = vault
        self._signins = signins
        self._generation = -1
        self._owned: Mapping[str, Mapping[str, int]] = {}
        """For each owner of secrets their names and versions."""

    def of(self, principal: str, entry: Entry) -> Credential:
        """The identity of what this principal's connection to the entry's server holds."""
        if self._signins is not None and signs_in(entry):
            return Credential(principal, self._signins.version(principal, entry) + self._own(principal, entry).version)
        return self._own(principal, entry) if entry.secrets else NOBODY

    async def ready(self, principal: str, entry: Entry) -> Credential:
        """The same, once what it names is there and fresh.

        Raises:
            CredentialMissing: this principal has to sign in; says where.
        """
        if self._signins is not None and signs_in(entry):
            await self._signins.ready(principal, entry)
        return self.of(principal, entry)

    async def refused(self, principal: str, entry: Entry, exc: TokenRefused) -> CredentialMissing:
        """What a caller is told whose token a server refuses."""
        if self._signins is None or not signs_in(entry):
            return exc
        return await self._signins.challenged(principal, entry, exc.challenge)

    def _own(self, principal: str, entry: Entry) -> Credential:
        owned = self._secrets().get(principal)
        if owned is None:
            return NOBODY
        names = [entry.kept_as(secret.name) for secret in entry.secrets]
        versions = [str(owned[name]) for name in names if name in owned]
        return Credential(principal, ",".join(versions)) if versions else NOBODY

    def _secrets(self) -> Mapping[str, Mapping[str, int]]:
        if self._generation != self._vault.generation:
            owned: dict[str, dict[str, int]] = {}
            for kept in self._vault.kept(SECRET):
                if kept.owner:
                    owned.setdefault(kept.owner, {})[kept.name] = kept.version
            self._owned, self._generation = owned, self._vault.generation
        return self._owned
