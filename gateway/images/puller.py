"""Bringing images from registries into the engine, with the user's logins and the engine's mirrors and proxies.

Knows registries and progress; not which images may run."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any, Final

import anyio
from anyio import to_thread

from gateway.docker_engine import DockerEngine, EngineErrors, short
from gateway.errors import EngineDown, ImageError
from gateway.images.logins import login_for
from gateway.images.names import HUB, ImageName
from gateway.images.reachability import Reachability, registry_address, split_address
from gateway.images.registry import RegistryClient
from gateway.installer import without_logins

Progress = Callable[[str], None]

PULL_SILENCE_S: Final = 60.0
"""A pull that reports nothing for so long is given up."""
PULL_TIMEOUT_S: Final = 900.0
MIB: Final = 1024 * 1024
STEP_PERCENT: Final = 10


class Puller:
    """Pulls into one engine."""

    def __init__(self, engine: DockerEngine) -> None:
        self._engine = engine
        self._reachability = Reachability()

    async def resolve(self, name: ImageName) -> str:
        """The digest that the tag stands for now, as the engine sees its registry, or where it cannot say so (Podman),
        as it looks from here.

        Raises:
            ImageError: the registry cannot be asked, or has no such tag.
        """
        await self._reach(name)
        try:
            found = await self._engine.run(lambda client: client.inspect_distribution(name.tagged))  # type: ignore[no-untyped-call]
            return str(found["Descriptor"]["digest"])
        except (*EngineErrors, EngineDown) as exc:
            by_engine = without_logins(short(exc))
        try:
            return await to_thread.run_sync(self._resolve_here, name)
        except ImageError as exc:
            raise ImageError(f"{name.tagged} cannot be resolved: {exc} (the engine says: {by_engine})") from exc

    def _resolve_here(self, name: ImageName) -> str:
        with closing(self.connect(name)) as registry:
            return registry.manifest(name.tag or "latest").digest

    async def pull(self, name: ImageName, progress: Progress) -> None:
        """Pull the image by its digest, which the engine checks.

        Raises:
            ImageError: its registry does not answer, refuses, stalls, or sends something else.
        """
        address = await self._reach(name)
        progress(f"pulling {name.pinned}")
        try:
            with anyio.fail_after(PULL_TIMEOUT_S):
                await self._engine.run(
                    lambda client: follow(
                        client.pull(name.full, tag=name.digest, stream=True, decode=True), name, progress
                    ),
                    timeout_s=PULL_SILENCE_S,
                )
        except TimeoutError as exc:
            self._reachability.refuse(address)
            raise ImageError(f"pulling {name.pinned} took too long") from exc
        except EngineDown as exc:
            raise ImageError(str(exc)) from exc
        except EngineErrors as exc:
            raise ImageError(f"{name.pinned} could not be pulled: {without_logins(str(exc))}") from exc

    async def _reach(self, name: ImageName) -> tuple[str, int]:
        try:
            info = await self._engine.run(lambda client: client.info())
        except (*EngineErrors, EngineDown) as exc:
            raise ImageError(without_logins(str(exc))) from exc
        addresses = _whom_to_reach(name, info)
        for address in addresses:
            if await self._reachability.check(address):
                return address
        tried = ", ".join(host for host, _ in addresses)
        raise ImageError(
            f"{name.pinned if name.digest else name.tagged} is not here, and its registry ({tried}) cannot be reached"
        )

    def connect(self, name: ImageName) -> RegistryClient:
        """The image's repository, to be read here and not by the engine. Blocking."""
        try:
            with closing(self._engine.client()) as client:
                config = client.info().get("RegistryConfig") or {}
        except (*EngineErrors, OSError) as exc:
            raise ImageError(self._engine.without_answer(exc)) from exc
        mirrors = [str(mirror) for mirror in config.get("Mirrors") or ()]
        return RegistryClient(name, login_for(name.registry), insecure=_is_insecure(name.host, config), mirrors=mirrors)


def follow(reports: Iterable[dict[str, Any]], name: ImageName, progress: Progress) -> None:
    """Read the engine's reports to the end; say how far it is at every tenth.

    Raises:
        ImageError: the engine reports a failure.
    """
    layers: dict[str, tuple[int, int]] = {}
    said, failure = 0, ""
    for report in reports:  # to the end in any case: only then is the connection free
        failure = failure or without_logins(str(report.get("error") or ""))
        detail = report.get("progressDetail") or {}
        if report.get("status") == "Downloading" and detail.get("total"):
            layers[str(report.get("id"))] = (int(detail["current"]), int(detail["total"]))
            got, whole = (sum(sizes) for sizes in zip(*layers.values(), strict=True))
            percent = got * 100 // whole
            if percent >= said + STEP_PERCENT:
                said = percent - percent % STEP_PERCENT
                progress(f"pulling {name.full}: {said} % of {whole / MIB:.1f} MiB")
    if failure:
        raise ImageError(f"the registry refused {name.pinned}: {failure}")


def _whom_to_reach(name: ImageName, info: dict[str, Any]) -> list[tuple[str, int]]:
    """Of whom the engine must reach one to pull: its proxy where it has one, else a mirror or the registry."""
    proxy = info.get("HttpsProxy") or info.get("HttpProxy")
    mirrors = (info.get("RegistryConfig") or {}).get("Mirrors") or []
    if proxy:
        return [_url_address(str(proxy))]
    found = [_url_address(str(mirror)) for mirror in mirrors] if name.registry == HUB else []
    return [*found, registry_address(name.full)]


def _url_address(url: str) -> tuple[str, int]:
    scheme, _, rest = url.rpartition("://")
    host = rest.partition("/")[0].rpartition("@")[2]
    return split_address(host, 443 if scheme == "https" else 80)


def _is_insecure(host: str, config: dict[str, Any]) -> bool:
    """Whether the engine talks to this registry without TLS too: loopback always, others where it is told so."""
    index = (config.get("IndexConfigs") or {}).get(host)
    if isinstance(index, dict) and index.get("Secure") is False:
        return True
    address, _ = split_address(host, 443)
    try:
        ip = ipaddress.ip_address("127.0.0.1" if address == "localhost" else address)
        networks = [ipaddress.ip_network(text) for text in config.get("InsecureRegistryCIDRs") or ()]
    except ValueError:
        return False
    return any(ip in network for network in networks)
