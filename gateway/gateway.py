"""The gateway as a whole: everything it owns, acquired in reading order and released in reverse.

Composes the rooms; knows no HTTP."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final, Self

import anyio
from anyio import to_thread

from catalog import Catalog, Difference, Entry, Profile, difference
from gateway import audit, auditlog, errors, limits, policyfiles
from gateway.abilities import lacking, with_defaults
from gateway.administration import Act, Administration
from gateway.agentuse import AgentUses
from gateway.audit import Audit
from gateway.auth.configuration import read_configuration
from gateway.caller import Caller
from gateway.catalogs import open_catalog, profiles_file
from gateway.choice import write_choice
from gateway.credentials import Credentials
from gateway.database import Database
from gateway.delegation import Delegate
from gateway.docker_engine import DockerEngine
from gateway.door import LEARN_TIMEOUT_S, Door
from gateway.egress.attempts import Attempt
from gateway.images import ImageStore
from gateway.inner import InnerRuntime
from gateway.leftovers import remove_leftovers
from gateway.leftovers import watch as watch_leftovers
from gateway.limits import Limits
from gateway.listings import Listing, ListingStore
from gateway.models import Models
from gateway.modeluse import ModelUses
from gateway.mounts import MountGuard
from gateway.oauth.signins import Signins, Ticket, signs_in
from gateway.packages import PackageStore
from gateway.pool import Bounds, Pool
from gateway.prewarm import UseRecord
from gateway.redaction import KnownValues, hidden_in_logs
from gateway.reload import CatalogWatch, summary
from gateway.reviews import Reviews
from gateway.rulebook import FILE_NAME as RULES_NAME
from gateway.rulebook import open_rulebook
from gateway.runs import Run
from gateway.runtimes import Runtime
from gateway.runtimes.docker import DockerRuntime
from gateway.runtimes.presence import EnginePresence
from gateway.runtimes.process import ProcessRuntime
from gateway.runtimes.remote import RemoteRuntime
from gateway.sampler import Sampler
from gateway.secrets import EnvironmentSecrets, Secrets
from gateway.settings import Settings
from gateway.statelock import lock_state, release_state
from gateway.stores import open_stores
from gateway.tokenquotas import TokenQuotas
from gateway.vault import SECRET, Place, Vault
from policies import CedarEngine, Principal
from policies.limits import Limit

_log: Final = logging.getLogger(__name__)

DEFINITIONS: Final = "definitions"
"""Folder of what was approved of each server's tools."""


class Gateway:
    """Owns the state folder, the catalog, the door, the pool and the models."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings.check()
        self.signin = read_configuration(settings.auth)
        self.catalog: Catalog = open_catalog(settings)
        self.profile: Profile = self.catalog.profile(settings.profile)
        self.rulebook = open_rulebook(settings, self.catalog)
        self._listings = ListingStore(settings.state_dir / "listings")
        self.catalog_watch = CatalogWatch(self._watched, self._reload)
        self.known = KnownValues()
        self._stack = AsyncExitStack()

    @property
    def no_engine(self) -> str | None:
        """Why containers are not used, if they are not."""
        return self.engine.missing

    def _watched(self) -> list[Path]:
        """The files that a reload reads, whether or not they are there."""
        rules = self.rulebook.file or self.settings.state_dir / RULES_NAME
        own = [*policyfiles.paths(self.settings), *limits.places(self.settings)]
        return [self.catalog.path, profiles_file(self.settings), rules, *own]

    def _refusal(self, entry: Entry) -> str:
        """Why the rules in force refuse the entry; empty if they do not."""
        return self.rulebook.refusal(entry)

    async def _reload(self) -> Difference:
        """Load the catalog and its rules again and take what changed; until all is known to be good, nothing changes.

        Raises:
            CatalogError: a file cannot be read or is invalid, or the catalog has lost the default profile.
            PoliciesUnusable: the policies cannot be read, break rules, or miss one that a profile has.
            SecretsError: two secrets in it would be one.
            GatewayError: it cannot be recorded.
        """
        catalog = await to_thread.run_sync(open_catalog, self.settings)
        profile = catalog.profile(self.profile.name)
        rulebook = await to_thread.run_sync(self.rulebook.read_again, self.settings, catalog)
        Secrets.check(_secret_names(catalog))
        policy = await to_thread.run_sync(self._policy, catalog)
        self._limit(await to_thread.run_sync(limits.read, self.settings, catalog.entries))
        found = difference(self.catalog, catalog)
        if found or rulebook != self.rulebook or policy.generation != self.door.policy.generation:
            self._note_reload(found, policy.generation)
            # One step for whoever runs in this event loop: nobody sees half of it.
            self.catalog, self.profile, self.rulebook = catalog, profile, rulebook
            if refused := rulebook.refused(catalog):
                _log.warning("the rules in %s refuse %d entries", rulebook.file, len(refused))
            self.images.trust(rulebook.publishers, rulebook.image_refusal)
            self.pool.replace(map(with_defaults, catalog.runnable.values()))
            self.door.follow(policy, catalog.profiles, profile)
        return found

    def _note_reload(self, found: Difference, generation: str) -> None:
        """Write down what is about to change, whoever changed the files.

        Raises:
            GatewayError: that cannot be written down.
        """
        try:
            self.administration.note(Act("catalog", "take"), "ok", summary(found), generation)
        except audit.AuditUnwritable as exc:
            raise errors.GatewayError(f"what changes cannot be recorded: {exc}") from exc

    def use(self, name: str) -> Profile:
        """Serve this profile at /mcp from now on, and after the next start. Clients there are told to list anew.

        Raises:
            NotInCatalog: there is no such profile.
            GatewayError: the choice cannot be kept.
        """
        profile = self.catalog.profile(name)
        try:
            write_choice(self.settings.state_dir, name)
        except OSError as exc:
            raise errors.GatewayError(f"the choice of {name} cannot be kept: {exc.strerror}") from exc
        self.profile = profile
        self.door.follow(self.door.policy, self.catalog.profiles, profile)
        return profile

    def _limit(self, found: tuple[Limit, ...]) -> None:
        """From the next call on these limits hold."""
        if found != self.limits.limits:
            self.limits.follow(found)
            self.quotas.follow(found)
        self.door.limits = self.limits if not all(limit.tokens for limit in found) else None
        self.models.quotas = self.quotas if self.quotas.limits else None

    def _policy(self, catalog: Catalog) -> CedarEngine:
        """
        Raises:
            PoliciesUnusable: the policies cannot be read, break rules, or miss one that a profile has.
        """
        listings: dict[str, Listing] = {}
        for entry in map(with_defaults, catalog.runnable.values()):
            if (known := self._listings.load(entry)) is not None:
                listings.setdefault(entry.entry_id, known)
        return policyfiles.engine(catalog, policyfiles.read_rules(self.settings, catalog, listings))

    async def __aenter__(self) -> Self:
        """
        Raises:
            PoliciesUnusable: the policies cannot be read, break rules, or miss one that a profile has.
            StateInUse: another gateway uses the same state folder.
            GatewayError: the state folder or the database cannot be used.
        """
        async with AsyncExitStack() as stack:
            state = self.settings.state_dir
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
            stack.callback(release_state, lock_state(state))
            self.run = stack.enter_context(Run(state))
            await to_thread.run_sync(remove_leftovers, self.run, state, self.settings.cache_dir)
            self.database = await stack.enter_async_context(Database(self.settings.database_url))
            stack.enter_context(hidden_in_logs(self.known))
            self.audit = Audit(state / auditlog.FILE, self.known.clean)
            self.audit.open()
            stack.callback(self.audit.close)
            policy = await to_thread.run_sync(self._policy, self.catalog)
            self.vault = Vault(self.database, state, self.settings.vault_key)
            await self.vault.open()
            self._open_secrets()
            self.signins = Signins(self.vault, self.secrets)
            credentials = Credentials(self.vault, self.signins)
            self.door = Door(policy, self.audit, credentials, page_size=self.settings.page_size)
            self.limits = Limits(self.database)
            await self.limits.open()
            await self._open_runtimes(stack)
            self.administration = Administration(self.door, self.audit)
            self.agent_uses = AgentUses(self.door, self.audit)
            self.model_uses = ModelUses(self.door, self.audit, lambda: self.profile)
            self.models = await stack.enter_async_context(Models(self.settings, self.model_uses))
            self.quotas = TokenQuotas(self.database)
            self._limit(await to_thread.run_sync(limits.read, self.settings, self.catalog.entries))
            self.door.sampler = Sampler(self.door, self.models)
            self.inner = InnerRuntime({"agent": [Delegate(self.settings, self.door, self.models, self.agent_uses)]})
            tasks = await stack.enter_async_context(anyio.create_task_group())
            self.reviews = Reviews(self.settings.catalog_lock, state / DEFINITIONS, self._kept_back)
            self._loop = asyncio.get_running_loop()
            self._use = use = UseRecord(state / "use.json")
            self.pool = Pool(
                map(with_defaults, self.catalog.runnable.values()),
                self.runtime_for,
                self._listings,
                tasks,
                self.door.hearing,
                Bounds(servers=self.settings.max_servers),
                use.note,
                self._admitted,
                self._check_secrets,
                self._refusal,
            )
            self.door.serve(self.pool)
            self.vault.watchers.append(self._secrets_changed)
            tasks.start_soon(self.catalog_watch.watch)
            tasks.start_soon(self.audit.watch)
            tasks.start_soon(self.engine.watch)
            tasks.start_soon(watch_leftovers, self.run, state, self.settings.cache_dir)
            if not self.database.is_sqlite:
                tasks.start_soon(self.vault.watch)
            stack.callback(tasks.cancel_scope.cancel)
            stack.callback(self.agent_uses.close)
            stack.push_async_callback(self.door.aclose)
            stack.push_async_callback(self.pool.finish)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *exc: object) -> None:
        # Every part bounds its own release, so the whole is bounded.
        await self._stack.aclose()

    def _admitted(self, entry: Entry, listing: Listing) -> Listing:
        """The listing without what a person must look at first; the gateway's own tools change with the gateway."""
        return listing if entry.built_in else self.reviews.admit(entry.entry_id, listing, entry.id)

    def _open_secrets(self) -> None:
        folder = self.settings.secrets_dir or self.settings.state_dir / "secrets"
        stores = open_stores(self.settings.stores, self.vault, EnvironmentSecrets(os.environ), folder)
        self.secrets = Secrets(stores, _secret_names(self.catalog))
        self.secrets.resolved = self.known.add

    async def signed_in(self, ticket: Ticket) -> str:
        """Somebody has signed in for a server: ask it what it offers, if nobody knows yet. What it wants besides, if
        anything, with a link."""
        if ticket.entry.id not in self.pool.servers or self.pool.listing(ticket.entry.id) is not None:
            return ""
        caller = Caller(Principal(ticket.principal), self.profile)
        try:
            async with asyncio.timeout(LEARN_TIMEOUT_S):
                await self.door.connect(caller, ticket.entry.id)
        except errors.CredentialMissing as exc:
            return str(exc)
        except (errors.UpstreamError, TimeoutError) as exc:
            _log.warning("%s", str(exc) or f"server {ticket.entry.id} did not say in time what it offers")
        return ""

    async def _open_runtimes(self, stack: AsyncExitStack) -> None:
        settings = self.settings
        volumes = settings.state_dir / "volumes"
        secrets_dir = settings.secrets_dir or settings.state_dir / "secrets"
        engine = DockerEngine(settings.engine)
        self.images = ImageStore(
            settings.cache_dir,
            engine,
            run=self.run,
            publishers=self.rulebook.publishers,
            refusal=self.rulebook.image_refusal,
            lock=settings.catalog_lock,
        )
        own = [settings.state_dir, settings.cache_dir, secrets_dir]
        if settings.docker_host.startswith("unix://"):
            own.append(Path(settings.docker_host.removeprefix("unix://")))
        self.docker = DockerRuntime(
            engine,
            self.images,
            volumes,
            self.run,
            secrets=self.secrets,
            mounts=MountGuard(settings.mount_roots, own),
            container_runtime=settings.container_runtime,
            egress_network=settings.egress_network,
            report=self._audit_denied,
        )
        self.process = ProcessRuntime(PackageStore(settings.cache_dir), volumes, self.run, self.secrets)
        self.remote = RemoteRuntime(self.secrets, self.signins)
        wanted = settings.runtime != "process"
        self.engine = EnginePresence(self.docker, wanted=wanted, arrived=self._engine_arrived)
        await self.engine.ask()
        stack.push_async_callback(self.docker.aclose)

    def _engine_arrived(self) -> None:
        """What runs as a process for want of an engine moves into containers; what was refused may be tried again."""
        self.pool.move(lambda server: server.runtime == self.process.name)

    def _kept_back(self, server: str, tool: str, why: str) -> None:
        """Record that a tool waits for a person; called from worker threads."""
        self._loop.call_soon_threadsafe(self._audit_kept_back, server, tool, why)

    def _audit_kept_back(self, server: str, tool: str, why: str) -> None:
        try:
            self.audit.write(audit.kept_back(secrets.token_hex(8), server, tool, why))
        except audit.AuditUnwritable as exc:
            _log.error("that tool %s of server %s is kept back could not be recorded: %s", tool, server, exc)

    def _audit_denied(self, server: str, attempt: Attempt) -> None:
        """Record what the egress filter refused; it is refused whether or not that can be recorded."""
        where = f"{attempt.host}:{attempt.port}"
        detail = f"{attempt.via}: {attempt.reason}"
        entry = self.catalog.runnable.get(server)
        id = entry.entry_id if entry is not None else server
        record = audit.egress_denied(secrets.token_hex(8), id, where, detail, server if server != id else "")
        try:
            self.audit.write(record)
        except audit.AuditUnwritable as exc:
            _log.error("what server %s was denied could not be recorded: %s", server, exc)

    async def _check_secrets(self, entry: Entry, owner: str) -> None:
        """
        Raises:
            UpstreamUnavailable: a secret is missing, or must not be used; names it and says how to set it.
        """
        if signs_in(entry):
            self.known.add([self.signins.token(owner, entry)])
        if not entry.secrets:
            return
        try:
            await to_thread.run_sync(self.secrets.resolve, entry, owner)
        except errors.SecretsError as exc:
            raise errors.CredentialMissing(f"server {entry.id} is not started: {exc}") from exc

    def _secrets_changed(self, places: frozenset[Place]) -> None:
        """Servers that hold an older value of these are started anew; those that waited for one may start."""
        for id, server in list(self.pool.servers.items()):
            names = {server.entry.kept_as(secret.name) for secret in server.entry.secrets}
            owners = {place.owner for place in places if place.kind == SECRET and place.name in names}
            if "" in owners:
                self.pool.renew(id)
            else:
                for owner in owners:
                    self.pool.end_credentials(id, owner)

    def prewarm(self) -> None:
        """Start, in the background, the servers of the profile that are likely to be called soon."""
        for id in self._use.wanted(self.pool.servers[id].entry for id in self.profile.names):
            try:
                self.pool.start_soon(id)
            except errors.UpstreamError as exc:
                _log.warning("server %s is not started ahead of its first call: %s", id, exc)

    def runtime_for(self, entry: Entry) -> Runtime:
        """Containers where there is an engine, else processes; remote entries run elsewhere anyway.

        Raises:
            UpstreamUnavailable: this entry cannot run here; says why.
        """
        if why := self._refusal(entry):
            raise errors.UpstreamUnavailable(f"server {entry.id} is refused: {why}")
        if reasons := list(lacking(entry)):
            raise errors.UpstreamUnavailable(f"server {entry.id} {'; it '.join(reasons)}")
        if entry.remote is not None and entry.image is None and entry.package is None:
            return self.remote
        if entry.built_in is not None:
            return self.inner
        if self.no_engine is None:
            return self.docker
        if self.settings.runtime == "docker":
            raise errors.RuntimeDown(f"server {entry.id} runs in containers only (LOCKGATE_RUNTIME): {self.no_engine}")
        if entry.package is None:
            raise errors.RuntimeDown(
                f"server {entry.id} is published as an image only and needs a Docker Engine: {self.no_engine}"
            )
        return self.process

    def runtime_name(self, entry: Entry) -> str:
        """What would run the entry, for people."""
        return self.would_run(entry)[0]

    def would_run(self, entry: Entry) -> tuple[str, str]:
        """What would run the entry, for people, and why it cannot be started where that is nothing."""
        try:
            runtime = self.runtime_for(entry)
        except errors.UpstreamError as exc:
            return "-", str(exc)
        labelled = next((one for one in (self.process, self.docker) if one is runtime), None)
        return (labelled.label if labelled is not None else runtime.name), ""


def _secret_names(catalog: Catalog) -> list[str]:
    """The names under which secrets are kept, each once."""
    kept = (entry.kept_as(secret.name) for entry in catalog.runnable.values() for secret in entry.secrets)
    return list(dict.fromkeys(kept))
