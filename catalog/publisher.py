"""Who publishes images, and how their signatures are known: by public keys, or by certified identities.

Does not verify anything: it says what must hold.
"""

import re
from typing import Annotated, Self

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from catalog.parts import Id, Line, Part, refuse
from catalog.spelling import quoted

HUB_NAMES = frozenset(("docker.io", "index.docker.io", "registry-1.docker.io", "registry.hub.docker.com"))
_PATTERN = re.compile(r"[a-z0-9][a-z0-9._:/-]*(?:/\*)?")
_PEM = re.compile(r"\s*-----BEGIN ([A-Z ]+)-----\n[A-Za-z0-9+/=\n ]+-----END \1-----\s*")


def check_images(text: str) -> str:
    """Check a pattern of repositories: one of them, or all below a path."""
    if not _PATTERN.fullmatch(text) or "//" in text:
        raise ValueError(f"{quoted(text)} names no images; write ghcr.io/acme/box, or ghcr.io/acme/* for all below")
    return text


def _pem(kind: str) -> AfterValidator:
    def check(text: str) -> str:
        found = _PEM.fullmatch(text)
        if found is None or found.group(1) != kind:
            raise ValueError(f"must be PEM that begins with -----BEGIN {kind}-----")
        return text

    return AfterValidator(check)


Key = Annotated[str, StringConstraints(max_length=8192), _pem("PUBLIC KEY")]
Certificate = Annotated[str, StringConstraints(max_length=16_384), _pem("CERTIFICATE")]


class Identity(Part):
    """Somebody whom an identity service vouches for."""

    issuer: Line
    """The service, by its URL."""
    subject: Line
    """The e-mail address or URL it vouches for; a final * stands for any end."""


class Publisher(Part):
    """The images of one publisher run only with a signature by one of its keys or identities."""

    name: Id
    images: Annotated[tuple[Annotated[str, AfterValidator(check_images)], ...], Field(min_length=1, max_length=64)]
    keys: Annotated[tuple[Key, ...], Field(max_length=16)] = ()
    identities: Annotated[tuple[Identity, ...], Field(max_length=16)] = ()
    roots: Annotated[tuple[Certificate, ...], Field(max_length=16)] = ()
    """Certificates that all certificates of the identities lead to."""
    log_keys: Annotated[tuple[Key, ...], Field(max_length=16)] = ()
    """Public keys of the transparency logs that vouch for the time of a signature."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        found = []
        if not self.keys and not self.identities:
            found.append("has neither keys nor identities, so nothing could be verified; add one of them")
        if self.identities and not (self.roots and self.log_keys):
            found.append(
                "has identities, which need roots and log_keys to be verified without asking anybody; add them"
            )
        if not self.identities and (self.roots or self.log_keys):
            found.append("has roots or log_keys but no identities; add them, or remove these")
        refuse(found)
        return self

    def publishes(self, repository: str) -> bool:
        """Whether the images of this repository (registry and path, in full) are this publisher's."""
        return any(covers(pattern, repository) for pattern in self.images)


def covers(pattern: str, repository: str) -> bool:
    """Whether a pattern names this repository (registry and path, in full); what names no registry is of Docker Hub."""
    registry, _, path = pattern.partition("/") if _has_registry(pattern) else ("docker.io", "", pattern)
    registry, path = in_full(registry, path)
    full = f"{registry}/{path}"
    return repository == full or (full.endswith("/*") and repository.startswith(full[:-1]))


def in_full(registry: str, path: str) -> tuple[str, str]:
    """A registry and a path in it by the one name of each: Docker Hub has several, and its own images a short one."""
    if "." in registry:  # else it is one by its port alone
        registry = registry.removesuffix(":443")
    if registry in HUB_NAMES:
        return "docker.io", path if "/" in path or path == "*" else f"library/{path}"
    return registry, path


def _has_registry(pattern: str) -> bool:
    first = pattern.partition("/")[0]
    return first == "localhost" or "." in first or ":" in first
