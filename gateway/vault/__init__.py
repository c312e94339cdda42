"""The vault: secrets kept encrypted in the database, under a key that is kept elsewhere.

Knows names, owners and values; not which server needs them."""

from gateway.vault.vault import SECRET, TOKEN, Change, Kept, Place, Vault

__all__ = ["SECRET", "TOKEN", "Change", "Kept", "Place", "Vault"]
