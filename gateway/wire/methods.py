"""Which methods are the protocol's own, in any revision, and which are an extension's or a vendor's.

Knows names only."""

from __future__ import annotations

import re
from typing import Final

OWN_FAMILIES: Final = frozenset(
    {
        *("initialize", "initialized", "ping", "server", "cancelled", "progress", "message", "logging"),
        *("tools", "prompts", "resources", "completion", "subscriptions", "tasks"),
        *("sampling", "elicitation", "roots", "notifications"),
    }
)
"""First parts of the names of the protocol's methods; what follows `notifications/` counts as first part too."""
NOTIFICATIONS: Final = "notifications/"

_NAME: Final = re.compile(r"[A-Za-z0-9._$/-]{1,128}")


def is_foreign(method: str) -> bool:
    """Whether a request of this method may be an extension's. Names of the protocol's own families never are: they
    must not reach a server but by what the gateway knows of them."""
    return bool(_NAME.fullmatch(method)) and _family(method) not in OWN_FAMILIES


def is_foreign_notification(method: str) -> bool:
    """The same for a notification, with or without `notifications/` before its name."""
    return is_foreign(method.removeprefix(NOTIFICATIONS))


def belongs_to(method: str, extension: str) -> bool:
    """Whether a method is one of an extension's (`com.example/sheets`): `sheets/...` or `com.example/sheets/...`."""
    name = method.removeprefix(NOTIFICATIONS)
    return name.startswith((extension.rpartition("/")[2] + "/", extension + "/"))


def _family(method: str) -> str:
    return method.partition("/")[0]
