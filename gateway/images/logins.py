"""The user's logins to container registries: `auths` of ~/.docker/config.json and credential helpers.

Keeps none of them; they are read anew each time, as `docker login` may have changed them."""

from __future__ import annotations

from typing import NamedTuple

from docker import auth
from docker.errors import DockerException

from gateway.errors import ImageError
from gateway.images.names import HUB


class Login(NamedTuple):
    """A user name and password, or a token in their place. Never to be logged."""

    user: str
    password: str
    identity_token: str = ""

    def __repr__(self) -> str:
        return "Login(...)"


def login_for(registry: str) -> Login | None:
    """What the user has for this registry, if anything.

    Raises:
        ImageError: a credential helper failed.
    """
    try:
        found = auth.load_config().resolve_authconfig(None if registry == HUB else registry)
    except (DockerException, OSError, ValueError) as exc:
        raise ImageError(f"the login for {registry} cannot be read: {type(exc).__name__}; see: docker login") from exc
    if not found:
        return None
    fields = {str(name).lower(): str(value) for name, value in found.items() if value}
    login = Login(fields.get("username", ""), fields.get("password", ""), fields.get("identitytoken", ""))
    return login if login.identity_token or login.user else None
