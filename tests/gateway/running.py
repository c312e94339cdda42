"""A whole gateway for one test: real listener, real servers, nothing left afterwards.

Knows how to start and end it; what is asked of it is the test's."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from starlette.types import Scope

from gateway import auditlog
from gateway.app import loopback_principal
from gateway.serving import Service, served
from policies import Principal
from tests.gateway.callers import Http, Session
from tests.servers import LocalGateway, LocalRuntime, settings, until, write_catalog

USER = "X-Test-User"


def by_header(scope: Scope) -> Principal:
    """Each value of a header is a principal of its own."""
    return Principal(dict(scope["headers"]).get(USER.lower().encode(), b"nobody").decode())


class Place:
    """A running gateway."""

    def __init__(self, gateway: LocalGateway, service: Service) -> None:
        self.gateway = gateway
        self.service = service
        self.url = service.running.url
        self.http = Http(self.url)

    @property
    def local(self) -> LocalRuntime:
        return self.gateway.local

    async def session(self, path: str = "/mcp", **options: Any) -> Session:
        return await Session.open(self.url, path, **options)

    def audit(self) -> list[dict[str, Any]]:
        """What the audit file says of calls that are over, and of other things."""
        return list(auditlog.ends(self.gateway.settings.state_dir))

    def log(self, server: str) -> list[str]:
        return [line.text for line in self.gateway.pool.servers[server].log.lines()]


@asynccontextmanager
async def running(
    folder: Path,
    servers: Mapping[str, Mapping[str, Any] | Sequence[str]],
    profiles: Mapping[str, Mapping[str, Any] | Sequence[str]] | None = None,
    principal_of: Callable[[Scope], Principal] = loopback_principal,
    **changes: Any,
) -> AsyncIterator[Place]:
    """Serve these servers (see `write_catalog`); when the gateway has ended, so have all its processes.

    `principal_of` says who makes a request; `by_header` tells callers apart before there are tokens.
    """
    catalog = write_catalog(folder / "catalog.yaml", servers, profiles)
    gateway = LocalGateway(settings(folder, catalog, **changes))
    async with gateway, served(gateway, principal_of) as service:
        yield Place(gateway, service)
    await until(lambda: not gateway.local.processes(), "no server process is left")
