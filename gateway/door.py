"""The door: the one function every call passes, from any client, era or transport.

Resolves the name, decides, forwards, checks the result, audits. Knows no transport and no session."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

import anyio
from msgspec import Raw

from catalog import Entry, Profile
from gateway import audit, bridge, budget, errors, extensions, names, relayed, sampling, surface, tasks
from gateway.approvals import Approvals
from gateway.audit import Audit, AuditUnwritable, Record
from gateway.bridge import Followed, Held, InputRequired, Parked, Parking, Resume, Retry, Seal, Ticket
from gateway.caller import SOURCE, Caller
from gateway.connections import NOBODY, Credential
from gateway.credentials import Credentials
from gateway.guarding import ContentGuards
from gateway.hearing import Hearing
from gateway.holding import Holding
from gateway.inner import calling
from gateway.limits import Limits
from gateway.listings import PROMPTS, RESOURCES, TEMPLATES, TOOLS, Kind, Listing
from gateway.pool import Lease, Pool
from gateway.recording import note_server, record_of
from gateway.redaction import MARK
from gateway.relayed import Follower, RelayedTask
from gateway.routes import LISTS, ROUTES, Route, checked, denied, needs_tasks, resolve
from gateway.slowcall import SlowCall
from gateway.slowcalls import SlowCalls
from gateway.surface import Surface, Target
from gateway.tasks import Task, Tasks
from gateway.upstream import Call, CallerFacts, Notice, Reply, Upstream
from gateway.wire import envelope, headers
from gateway.wire.envelope import Fields, WireError
from policies import Action, Circumstances, Decision, Facts, PolicyEngine, Request

if TYPE_CHECKING:
    from gateway.sampler import Sampler

_log: Final = logging.getLogger(__name__)

PAGE_SIZE: Final = 250
LEARN_TIMEOUT_S: Final = 45.0
"""How long a listing waits for servers that were never asked before; they are announced when they are known."""
MAX_SURFACES: Final = 256
MAX_DECISIONS: Final = 4096
MAX_ITEM_CHARS: Final = 1024
"""A decision on an item with a longer name is not remembered: callers choose the URIs they ask for."""
MAX_INSTRUCTIONS_CHARS: Final = 2000
_SEEN: Final[Mapping[Kind, Action]] = {TOOLS: "list", PROMPTS: "prompt", RESOURCES: "read", TEMPLATES: "read"}
"""What a caller must be allowed to do to see an item of each list."""
Notify = Callable[[Notice], Awaitable[None]]


class Door:
    """Composes policy, pool and audit. One for the whole gateway."""

    def __init__(
        self, policy: PolicyEngine, audit_file: Audit, credentials: Credentials, *, page_size: int = PAGE_SIZE
    ) -> None:
        self.policy = policy
        self.credentials = credentials
        self._profiles: Mapping[str, Profile] = {}
        self._default: Profile | None = None
        self._audit = audit_file
        self._page_size = page_size
        self._pool: Pool | None = None
        self._surfaces: OrderedDict[tuple[object, ...], tuple[Profile, Surface]] = OrderedDict()
        self._decisions: dict[tuple[object, ...], Decision] = {}
        self.hearing = Hearing(self, audit_file)
        self.limits: Limits | None = None
        """Set where there are any."""
        self.sampler: Sampler | None = None
        """Answers servers that ask for a model, where their entry lets a model here do that."""
        self.approvals = Approvals(audit_file)
        self.guards = ContentGuards(self._entry, audit_file.clean)
        self.holding = Holding(self, self.approvals)
        self._seal = Seal()
        self._parking = Parking(self._withdraw)
        self._tasks = Tasks()
        self._slow_calls = SlowCalls(self, self._tasks)
        self._follower = Follower(self._told_of)

    def serve(self, pool: Pool) -> None:
        self._pool = pool

    @property
    def pool(self) -> Pool:
        if self._pool is None:
            raise RuntimeError("the door is used before the pool exists")
        return self._pool

    def follow(self, policy: PolicyEngine, profiles: Mapping[str, Profile], default: Profile) -> None:
        """From the next call on these are the rules and the profiles; calls under way end as they began. Callers
        for whom that changes something are told to list anew; one whose profile is gone is allowed nothing any more."""
        other = policy.generation != self.policy.generation
        self.policy, self._profiles, self._default = policy, profiles, default
        self._surfaces.clear()
        self._decisions.clear()
        self.hearing.profiles_changed(policy=other)

    def current(self, profile: Profile, *, follows_default: bool = False) -> Profile:
        """The profile as it is now, the default one for whom that serves; the same one if there is none of its name any
        more."""
        if follows_default and self._default is not None:
            return self._default
        return self._profiles.get(profile.name, profile)

    # -- the one function --------------------------------------------------------------------

    async def call(
        self, caller: Caller, method: str, params: bytes, notify: Notify, resume: Resume | None = None
    ) -> Reply | InputRequired:
        """Carry one call to its reply, or to the questions it waits for; progress goes to `notify` as it comes.
        Cancelling withdraws the call upstream. `resume` continues a call whose questions the era has asked itself.

        Raises:
            UnknownName, WireError: the request is at fault.
            UpstreamError: the server is at fault.
            AuditUnwritable: the call happened but could not be recorded, so it is not answered.
        """
        started = time.perf_counter()
        record = record_of(caller, method)
        outcome: Reply | InputRequired | None = None
        try:
            outcome = await self._admit(caller, method, params, notify, record, resume)
        except errors.UnknownName:
            record.outcome = "unknown"
            raise
        except errors.UpstreamError as exc:
            record.outcome, record.detail = "upstream", type(exc).__name__
            refused = self.pool.servers.get(record.instance or record.server)
            if isinstance(exc, errors.TokenRefused) and refused is not None:
                raise await self.credentials.refused(caller.principal.id, refused.entry, exc) from exc
            raise
        except WireError as exc:
            record.outcome, record.detail = "error", str(exc.code)
            raise
        finally:
            if resume is not None and isinstance(resume.continuation, Parked) and outcome is None:
                # Refused before its answers were passed on: its tool is gone, or not allowed any more.
                self._withdraw(resume.continuation)
            record.ms = round((time.perf_counter() - started) * 1000, 3)
            if isinstance(outcome, Reply):
                record.bytes = len(outcome.result or outcome.error or b"")
            try:
                self._audit.write(record)
            except AuditUnwritable:
                if isinstance(outcome, InputRequired):
                    self.give_up(outcome)
                elif record.outcome == "task":
                    self._tasks.leave(self._tasks.find(caller, record.detail), "it could not be recorded")
                raise
        if isinstance(outcome, InputRequired) and self.sampler is not None:
            return await self.sampler.settle(caller, method, params, notify, outcome)
        return outcome

    async def _admit(
        self, caller: Caller, method: str, params: bytes, notify: Notify, record: Record, resume: Resume | None
    ) -> Reply | InputRequired:
        route = ROUTES.get(method)
        if route is None:
            if method in tasks.METHODS:
                return await self._admit_task(caller, method, envelope.fields(params), record)
            return await self._admit_foreign(caller, method, params, notify, record)
        members = envelope.fields(params)
        if caller.profile.budget is not None and route.action == "call":
            found = await self._from_shelf(caller, members, record)
            if found is not None:
                return found
        view, target = await self._find(caller, route, members, record)
        note_server(record, caller, target.server, target.item)
        arguments = bytes(members.get("arguments", envelope.ABSENT))
        record.arguments = audit.digest(arguments)
        decision = self._decide(caller, route.action, target, arguments)
        record.policy, record.policies = self.policy.generation, decision.policy_ids
        ticket = _ticket(caller, method, target, record.arguments)
        asked = decision.ask is not None
        if asked:
            held = await self.holding.settle(caller, route, target, members, record, decision, ticket, notify, resume)
            if isinstance(held, InputRequired):
                record.outcome = "input_required"
                return held
            decision, resume, ticket.approved = held
        if not decision.allowed:
            if route.action == "read" and not asked:
                # A URI need not be listed, so this one may never have been visible: denied looks like absent.
                raise errors.UnknownName(f"Resource not found: {record.name}")
            record.outcome, record.detail = "denied", decision.reason
            if resume is not None and isinstance(resume.continuation, Parked):
                self._withdraw(resume.continuation)
            return denied(route, decision.reason)
        if route.action == "call":
            members.pop("task", None)  # what asked for a task before there was the extension
            if target.item in self.pool.servers[target.server].entry.tasks.only and not caller.takes_tasks:
                record.outcome = "error"
                return needs_tasks()
        if resume is None and ("inputResponses" in members or "requestState" in members):
            resume = self.unsealed(members, ticket)
        if resume is not None and resume.here is not None:
            ticket.here = resume.here.kept()
        caller.servers.add(target.server)
        if resume is not None and isinstance(resume.continuation, Parked):
            parked = resume.continuation
            try:
                parked.answer(resume.answers)
            except WireError:
                self._withdraw(parked)
                raise
            if parked.questions:
                record.outcome = "input_required"
                return InputRequired(parked.requests(), parked, ticket)
            upstream, call = parked.upstream, parked.call
            upstream.resume_timer(call)
        else:
            followed = resume is not None and isinstance(resume.continuation, Followed)
            if self.limits is not None and not followed:
                reached = await self.limits.take(caller.principal, record.server, target.item)
                if reached is not None:
                    record.outcome, record.detail = "limited", reached.detail
                    return reached.reply()
            kept = self.guards.arguments(target.server, members, record)
            if kept is not None:
                return kept
            upstream = await self.connect(caller, target.server)
            if resume is not None and isinstance(resume.continuation, Followed):
                outcome = await self._follower.resume(
                    upstream, resume.continuation, resume.answers, caller, members, self._told(upstream, notify), ticket
                )
                return await self._finished(view, target, method, outcome, record, ticket)
            call = await self._begin(upstream, method, members, caller, resume, record)
        early = resume.answers if resume is not None and resume.continuation == Retry(None) else {}
        outcome = await self._follow(upstream, call, notify, ticket, early, caller)
        if isinstance(outcome, Reply) and outcome.result is not None and tasks.is_task(outcome.result):
            task, outcome = await self._take_task(
                upstream, call, outcome.result, caller, target, notify, ticket, record
            )
            if task is not None:
                record.outcome, record.detail = "task", task.id
                return outcome
        return await self._finished(view, target, method, outcome, record, ticket)

    async def _from_shelf(self, caller: Caller, members: Fields, record: Record) -> Reply | None:
        """The answer to a search for tools that are not listed; a call of one becomes the call it stands for."""
        name = envelope.text(members.get("name", envelope.ABSENT), "name")
        if name == budget.CALL:
            record.name = name
            budget.unwrap(members)
        if name != budget.FIND:
            return None
        record.name = name
        if self.admits(caller):
            await self.learn(caller.profile.names, caller=caller)
        shelf = self.surface(caller).shelf
        if shelf is None:
            return None
        record.outcome = "ok"
        return budget.answer(shelf, bytes(members.get("arguments", envelope.ABSENT)))

    def _decide(self, caller: Caller, action: Action, target: Target, arguments: bytes) -> Decision:
        """What policy says, remembered where no rule looks at arguments or circumstances."""
        profile, server, item = caller.profile.name, target.server, target.item
        key = (self.policy.generation, self.pool.generation, caller.principal, action, profile, server, item)
        decision = self._decisions.get(key)
        if decision is None:
            request = self._request(caller, action, server, item)
            reads = self.policy.reads_context(request)
            if reads and arguments:
                request = replace(request, arguments=envelope.value(arguments) or {})
            decision = self._refusal(caller, action, server, item) or self.policy.decide(request)
            if len(self._decisions) >= MAX_DECISIONS:
                self._decisions.clear()
            if not reads and len(item) <= MAX_ITEM_CHARS:
                self._decisions[key] = decision
        return decision

    def decide_again(self, caller: Caller, action: Action, target: Target, arguments: bytes) -> Decision:
        """The word of the profile and of policy, as they are now, on a call that waited."""
        caller.profile = self.current(caller.profile, follows_default=caller.follows_default)
        return self._decide(caller, action, target, arguments)

    def decide(self, caller: Caller, action: Action, id: str, item: str) -> Decision:
        """The word of the profile and of policy on one item."""
        return self._refusal(caller, action, id, item) or self.policy.decide(self._request(caller, action, id, item))

    def _refusal(self, caller: Caller, action: Action, id: str, item: str) -> Decision | None:
        """The word of the profile, if that is no."""
        profile = caller.profile
        server = profile.names.get(id, id)
        if not self.admits(caller):
            return Decision(False, (), f"profile {profile.name} is not for this caller")
        if action in ("call", "list") and not profile.selects(server, item):
            return Decision(False, (), f"profile {profile.name} does not select this tool of {server}")
        if action == "extension" and server in profile.tools:
            # Such a method could do anything, so it is for whoever has all tools of the server.
            return Decision(False, (), f"profile {profile.name} selects tools of {server}")
        return None

    def _request(self, caller: Caller, action: Action, id: str, item: str) -> Request:
        """What policy is asked; it knows servers by the ids of their entries."""
        profile, known = caller.profile, self.pool.servers.get(id)
        categories = known.entry.categories if known is not None else ()
        listing = known.listing if known is not None else None
        facts = listing.facts(item, categories) if listing and action in ("call", "list") else Facts(categories)
        entry = profile.entry_id(profile.names.get(id, id))
        circumstances = Circumstances(time.time(), SOURCE.get())
        return Request(caller.principal, action, profile.name, entry, item, {}, facts, circumstances)

    async def _finished(
        self, view: Surface, target: Target, method: str, outcome: Reply | InputRequired, record: Record, ticket: Ticket
    ) -> Reply | InputRequired:
        if isinstance(outcome, Reply):
            outcome = await self._guarded(target.server, outcome, record)
            if record.outcome == "kept_back":
                return outcome
            outcome = checked(view, target, method, outcome, record, ticket)
        if isinstance(outcome, InputRequired):
            if isinstance(outcome.continuation, Followed):
                asked = self.guards.requests(target.server, outcome.requests, record)
                if isinstance(asked, Reply):
                    self.give_up(outcome)
                    return asked
                outcome = outcome._replace(requests=asked)
            record.outcome = "input_required"
        return outcome

    async def _guarded(self, server: str, reply: Reply, record: Record) -> Reply:
        """The reply after the content guards of its server."""
        return await self.guards.result(server, self.pool.listing(server), reply, record)

    def _told(self, upstream: Upstream, notify: Notify) -> Notify:
        """`notify` for what the guards of the server let through."""
        return partial(self._tell, upstream.server, notify)

    async def _tell(self, server: str, notify: Notify, item: Notice) -> None:
        if (told := self.guards.notice(server, item)) is not None:
            await notify(told)

    def _facts(self, caller: Caller, server: str) -> Callable[[], CallerFacts]:
        """What a server may be told of the client, should it be of an era that is told with each request."""
        entry = self._entry(server)
        if entry is None or entry.sampling.by == "client":
            return caller.facts
        return lambda: CallerFacts(envelope.raw(self._told_of(caller, server)), caller.log_level)

    def _told_of(self, caller: Caller, server: str) -> Fields:
        """The capabilities that a server may be told of, with what is answered here. Questions of a task that a client
        holds itself are not."""
        entry, own = self._entry(server), envelope.fields(caller.facts().capabilities)
        if entry is None:
            return own
        return sampling.told(entry, own, is_here=not (caller.takes_tasks and self._makes_tasks(server)))

    def _entry(self, server: str) -> Entry | None:
        known = self.pool.servers.get(server)
        return known.entry if known is not None else None

    # -- extensions --------------------------------------------------------------------------

    async def _admit_foreign(
        self, caller: Caller, method: str, params: bytes, notify: Notify, record: Record
    ) -> Reply | InputRequired:
        """A request of an extension or a vendor. What it asks is not known here, so it goes to the one server it can be
        meant for, unchanged; questions of that server in its course are declined."""
        server = self._meant(caller, method, params, record)
        if server is None:
            raise WireError(envelope.METHOD_NOT_FOUND, f"Method not found: {method}")
        upstream = await self.connect(caller, server)
        call = await self._begin(upstream, method, envelope.fields(params), caller, None, record)
        try:
            while not isinstance(item := await call.next(), Reply):
                if isinstance(item, Notice):
                    await self._tell(server, notify, item)
                else:
                    upstream.answer(item, None)
        finally:
            upstream.cancel(call, "the caller withdrew the request")
            self.pool.free(upstream)
        record.outcome = "ok" if item.result is not None else "error"
        return await self._guarded(server, item, record)

    def tell(self, caller: Caller, method: str, params: bytes) -> None:
        """Pass a client's notification of an extension or vendor on, to a connection that is open. Like a call it must
        be meant for one server alone, allowed and recorded; otherwise it is dropped, as nobody waits for an answer.

        Raises:
            AuditUnwritable: then it is not passed on.
        """
        record = record_of(caller, method)
        server = self._meant(caller, method, params, record)
        upstream = self._live(caller, server) if server is not None else None
        record.outcome = "ok" if upstream is not None else "unknown"
        self._audit.write(record)
        if upstream is not None:
            upstream.notify(method, params)

    def _live(self, caller: Caller, server: str) -> Upstream | None:
        return self.pool.live(server, self._lease(caller, server), self._credential(caller, server))

    def _meant(self, caller: Caller, method: str, params: bytes, record: Record) -> str | None:
        """The server a foreign method is meant for, if that is clear and allowed."""
        record.name = method[:256]
        server = extensions.owner(method, list(caller.profile.names), self.listings(caller))
        if server is None:
            return None
        note_server(record, caller, server, method)
        record.arguments = audit.digest(params)
        decision = self.decide(caller, "extension", server, method)
        record.policy, record.policies = self.policy.generation, decision.policy_ids
        if decision.allowed:
            caller.servers.add(server)
        return server if decision.allowed else None

    # -- tasks -------------------------------------------------------------------------------

    async def call_or_task(self, caller: Caller, method: str, params: bytes, notify: Notify) -> Reply | InputRequired:
        """`call` for a client that takes tasks: it gets one if a server without tasks is slow to answer.

        Raises: what `call` raises.
        """
        target = await self._slow_target(caller, params) if method == "tools/call" else None
        if target is None:
            return await self.call(caller, method, params, notify)
        after_s = self.pool.servers[target.server].entry.tasks.after_s
        return await self._slow_calls.call(caller, target, params, notify, after_s)

    async def _slow_target(self, caller: Caller, params: bytes) -> Target | None:
        """The tool of a call that may become a task of the gateway's own; whatever is wrong is for `call` to find."""
        members = envelope.fields(params)
        try:
            name = envelope.text(members.get("name", envelope.ABSENT), "name")
            if name == budget.CALL and caller.profile.budget is not None:
                budget.unwrap(members)
                name = envelope.text(members["name"], "name")
        except WireError:
            return None
        view = self.surface(caller)
        if name not in view.tools and await self._learn_owner(caller, view, name):
            view = self.surface(caller)
        target = view.tools.get(name)
        return None if target is None or self._makes_tasks(target.server) else target

    def _makes_tasks(self, server: str) -> bool:
        listing = self.pool.listing(server)
        return listing is not None and listing.era == "modern" and tasks.declared(listing.capabilities)

    async def _admit_task(self, caller: Caller, method: str, members: Fields, record: Record) -> Reply:
        """One of the extension's own methods, on a task this caller holds."""
        id = envelope.text(members.get("taskId", envelope.ABSENT), "taskId")
        record.name = id[:256]
        task = self._tasks.find(caller, id)
        server, item = task.target.server, task.target.item
        note_server(record, caller, server, item)
        decision = self.decide(caller, "list", server, item)
        record.policy, record.policies = self.policy.generation, decision.policy_ids
        if not decision.allowed:
            raise errors.UnknownName(tasks.NOT_FOUND)
        if isinstance(task, SlowCall):
            record.outcome = "ok"
            return task.reply(method, members)
        if not isinstance(task, RelayedTask):
            raise errors.UnknownName(tasks.NOT_FOUND)
        upstream = await self.connect(caller, server)
        task.pin(upstream)
        self._audit.write(record.start())
        reply = await self._guarded(server, await relayed.ask(upstream, task, method, members, caller.facts()), record)
        if record.outcome == "kept_back":
            return reply
        record.outcome = "ok" if reply.result is not None else "error"
        if reply.result is not None and MARK in reply.result:
            record.detail = "secret hidden"
        return relayed.answered(self.surface(caller), self._tasks, task, method, reply)

    async def _take_task(
        self,
        upstream: Upstream,
        call: Call,
        result: bytes,
        caller: Caller,
        target: Target,
        notify: Notify,
        ticket: Ticket,
        record: Record,
    ) -> tuple[Task | None, Reply | InputRequired]:
        """A task that a server made: handed on to a client that takes tasks, followed for any other."""
        if upstream.facts is None or upstream.facts.era == "legacy":
            raise errors.UpstreamInvalid(f"server {target.server} answered with a task, which its revision has not")
        if caller.takes_tasks:
            adopted = relayed.adopt(self._tasks, caller, target, upstream, result)
            if adopted is not None:
                task, reply = adopted[0], await self._guarded(target.server, adopted[1], record)
                if record.outcome == "kept_back":
                    self._tasks.leave(task, "what its server says of it was kept back")
                    self._follower.withdraw(upstream, relayed.task_id(target.server, envelope.fields(result)))
                    return None, reply
                return task, reply
        followed = Followed(relayed.task_id(target.server, envelope.fields(result)))
        tell = self._told(upstream, notify)
        return None, await self._follower.follow(upstream, followed, caller, call.progress_token, tell, ticket)

    def record_task(self, caller: Caller, task: SlowCall) -> None:
        """The audit line of a call whose client now has a task; the call writes its own line at its end.

        Raises:
            AuditUnwritable: then the client must not get the task.
        """
        record = record_of(caller, "tools/call")
        note_server(record, caller, task.target.server, task.target.item)
        record.outcome, record.detail = "task", task.id
        self._audit.write(record)

    def poll_of(self, caller: Caller, id: str) -> SlowCall | float:
        """How to hear of a task's changes: the task itself tells, or how often to ask, in seconds.

        Raises:
            UnknownName: this caller has no such task.
        """
        task = self._tasks.find(caller, id)
        return task if isinstance(task, SlowCall) else task.poll_s if isinstance(task, RelayedTask) else 1.0

    def end_tasks(self) -> None:
        """The gateway stops taking requests: every task ends and says so to whoever listens."""
        self._tasks.close()

    async def aclose(self) -> None:
        """End what runs without a client."""
        self.approvals.close()
        self._tasks.close()
        await self._slow_calls.aclose()
        await self._follower.aclose()

    async def _begin(
        self, upstream: Upstream, method: str, members: Fields, caller: Caller, resume: Resume | None, record: Record
    ) -> Call:
        """Send a request. What cannot be recorded is not sent."""
        if resume is not None:
            answered_here = resume.here.answers if resume.here is not None else {}
            members["inputResponses"] = envelope.raw({**resume.answers, **answered_here})
            if isinstance(resume.continuation, Retry) and resume.continuation.state is not None:
                members["requestState"] = resume.continuation.state
        known = self.pool.listing(upstream.server)
        if known is not None:
            record.entry_digest, record.tool_digest = known.digest[: audit.PREFIX], known.tool_digest(record.item)
        calling.set(caller)
        try:
            self._audit.write(record.start())
            return await upstream.start(method, members, caller=self._facts(caller, upstream.server))
        except BaseException:
            self.pool.free(upstream)
            raise

    async def _follow(
        self,
        upstream: Upstream,
        call: Call,
        notify: Notify,
        ticket: Ticket,
        early: Mapping[str, Raw],
        caller: Caller,
    ) -> Reply | InputRequired:
        """Read a call to its reply or to its next questions. Only a call that waits for answers stays open. `early` are
        answers that came with the request itself."""
        kept = False
        try:
            while not isinstance(item := await call.next(), Reply):
                if isinstance(item, Notice):
                    await self._tell(upstream.server, notify, item)
                    continue
                if not sampling.is_answered(
                    self._entry(upstream.server), item.method, item.params, caller.capabilities
                ):
                    upstream.answer(item, None)
                    continue
                questions, kept_back = self.guards.questions(upstream.server, await bridge.gather(call, item))
                for question in kept_back:
                    upstream.answer(question, None)
                if not questions:
                    continue
                parked = Parked(upstream, call, bridge.keyed(questions))
                parked.answer(early)
                if not parked.questions:
                    continue
                upstream.pause_timer(call)
                kept = True
                return InputRequired(parked.requests(), parked, ticket)
            return item
        finally:
            if not kept:
                upstream.cancel(call, "the caller withdrew the request")
                self.pool.free(upstream)

    async def connect(self, caller: Caller, server: str) -> Upstream:
        """The shared connection, or the caller's own where a legacy server may ask it questions."""
        entry = self.pool.servers[server].entry
        if entry.oauth is None:
            return await self.pool.connection(server, self._lease(caller, server), self._credential(caller, server))
        principal = caller.principal.id
        try:
            credential = await self.credentials.ready(principal, entry)
            return await self.pool.connection(server, self._lease(caller, server), credential)
        except errors.TokenRefused as exc:
            raise await self.credentials.refused(principal, entry, exc) from exc

    def _credential(self, caller: Caller, server: str) -> Credential:
        """Whose credential the caller's connection holds."""
        entry = self.pool.servers[server].entry
        return self.credentials.of(caller.principal.id, entry) if entry.secrets or entry.oauth else NOBODY

    def _lease(self, caller: Caller, server: str) -> Lease | None:
        known = self.pool.servers[server]
        if known.entry.may_ask and (known.listing is None or known.listing.era == "legacy"):
            return caller.lease(known.entry)
        return None

    def unsealed(self, members: Fields, like: Ticket) -> Resume | None:
        """The call that a modern client continues, taken out of the request; None for a new call.

        Raises:
            WireError: the state is forged, of another request, or too old, or an answer is not an object.
        """
        raw_answers, raw_state = members.pop("inputResponses", None), members.pop("requestState", None)
        answers = envelope.fields(raw_answers) if raw_answers is not None else {}
        if raw_state is None:
            # Without state there is nothing to continue; a modern server may still know what the answers are for.
            return Resume(Retry(None), bridge.objects(answers)) if answers else None
        ticket = self._seal.open(envelope.text(raw_state, "requestState"), like)
        if ticket.held:
            return Resume(Held(ticket.held), answers)
        ticket.approved = self.holding.redeemed(ticket.approved)
        if ticket.task:
            return Resume(Followed(ticket.task, ticket.answered), answers, ticket.approved, ticket.here)
        if not ticket.parked:
            state = Raw(ticket.state.encode()) if ticket.state else None
            return Resume(Retry(state), bridge.objects(answers), ticket.approved, ticket.here)
        parked = self._parking.leave(ticket.parked)
        if parked is None:
            raise WireError(envelope.INVALID_PARAMS, "requestState is not valid: the call is over")
        return Resume(parked, answers, ticket.approved, ticket.here)

    def sealed(self, required: InputRequired) -> str:
        """The `requestState` for a client that keeps it; a parked call waits from now on.

        Raises:
            UpstreamUnavailable: too many calls wait already.
        """
        ticket = required.ticket
        ticket.approved = self.holding.kept(ticket.approved)
        ticket.expires = time.time() + bridge.PARK_S
        if isinstance(required.continuation, Parked):
            ticket.parked = self._parking.enter(ticket.principal, required.continuation)
        elif isinstance(required.continuation, Followed):
            ticket.task, ticket.answered = required.continuation
        elif isinstance(required.continuation, Held):
            ticket.held = required.continuation.approval
            ticket.expires = min(ticket.expires, self.holding.expires_at(required.continuation))
        elif required.continuation.state is not None:
            ticket.state = bytes(required.continuation.state).decode()
        return self._seal.close(ticket)

    def _withdraw(self, parked: Parked) -> None:
        parked.upstream.cancel(parked.call, "nobody answered the server's question")
        self.pool.free(parked.upstream)

    def give_up(self, required: InputRequired) -> None:
        """End a call whose questions nobody will answer."""
        if isinstance(required.continuation, Parked):
            self._withdraw(required.continuation)
        elif isinstance(required.continuation, Held):
            self.holding.withdraw(required.continuation)
        elif isinstance(required.continuation, Followed):
            server = self.pool.servers.get(required.ticket.server)
            credential = self.credentials.of(required.ticket.principal, server.entry) if server is not None else NOBODY
            upstream = server.upstream_of(credential) if server is not None else None
            if upstream is not None:
                self._follower.withdraw(upstream, required.continuation.task)

    async def _find(self, caller: Caller, route: Route, members: Fields, record: Record) -> tuple[Surface, Target]:
        """Resolve the name; if it belongs to a server that was never asked what it offers, ask that one first."""
        view = self.surface(caller)
        try:
            return view, resolve(view, route, members, record)
        except errors.UnknownName:
            if not await self._learn_owner(caller, view, record.name):
                raise
        view = self.surface(caller)
        return view, resolve(view, route, members, record)

    async def _learn_owner(self, caller: Caller, view: Surface, name: str) -> bool:
        """Ask the server that a name belongs to what it offers, if it was never asked; False if there is no such."""
        runs = caller.profile.runs
        id = runs.get(view.single or names.owner(name))
        if id is None or self.pool.listing(id) is not None:
            return False
        await self.learn([id], caller=caller)
        return True

    # -- listings ----------------------------------------------------------------------------

    async def list(self, caller: Caller, method: str, params: bytes) -> bytes:
        """One page of what the caller may see. Starts only servers that were never asked what they offer.

        Raises:
            BadCursor, WireError: the request is at fault.
        """
        raw_cursor = envelope.fields(params).get("cursor")
        cursor = envelope.text(raw_cursor, "cursor") if raw_cursor is not None else None
        if self.admits(caller):
            await self.learn(caller.profile.names, caller=caller)
        return self.surface(caller).page(LISTS[method], cursor, self._page_size)

    async def learn(
        self, servers: Iterable[str], timeout_s: float = LEARN_TIMEOUT_S, caller: Caller | None = None
    ) -> None:
        """Ask the servers among these that are not known yet, all at once, within the given time, with the caller's
        credential where it has one of its own."""
        # Of a profile that is gone, the servers may be too.
        known = self.pool.servers
        unknown = [id for id in servers if id in known and not known[id].refusal and self.pool.listing(id) is None]
        if not unknown:
            return
        with anyio.move_on_after(timeout_s):
            async with anyio.create_task_group() as group:
                for id in unknown:
                    group.start_soon(self._learn_one, id, caller)

    async def _learn_one(self, id: str, caller: Caller | None) -> None:
        """Wait for a server's first listing. One that failed before is tried again, but nobody waits for it."""
        try:
            server = self.pool.servers.get(id)
            credential = NOBODY
            if caller is not None and server is not None:
                credential = await self.credentials.ready(caller.principal.id, server.entry)
            if server is not None and server.failures and credential == NOBODY:
                self.pool.start_soon(id)
            else:
                await self.pool.learn(id, credential)
        except errors.UpstreamError as exc:
            # Its own tools are missing; the others are listed all the same. `server list` shows why.
            _log.warning("%s", exc)

    def mirrored(self, target: Target) -> Mapping[headers.Path, tuple[str, str]]:
        """The arguments of a tool that modern HTTP requests repeat in headers."""
        listing = self.pool.listing(target.server)
        return listing.mirrored.get(target.item, {}) if listing is not None else {}

    def surface(self, caller: Caller) -> Surface:
        """What this caller sees, rebuilt only when a listing or the policy changed."""
        profile = caller.profile
        principal = caller.principal
        key = (profile.name, principal, self.policy.generation, self.pool.generation)
        built_for, found = self._surfaces.get(key, (None, None))
        # A call that began before a reload still has the profile of that time: its surface is not for the others.
        if found is None or (built_for is not profile and built_for != profile):
            listings = self.listings(caller)

            shown = self._shown(caller, listings)

            def visible(kind: Kind, server: str, item: str) -> bool:
                return (kind, server, item) in shown

            found = surface.build(profile, listings, visible)
            self._surfaces[key] = profile, found
            if len(self._surfaces) > MAX_SURFACES:
                self._surfaces.popitem(last=False)
        return found

    def _shown(self, caller: Caller, listings: Mapping[str, Listing]) -> set[tuple[Kind, str, str]]:
        """What the profile and policy let the caller see of these listings, asked in one go."""
        items = [
            (kind, id, item.key)
            for id, known in listings.items()
            for kind, item in surface.items(known)
            if self._refusal(caller, _SEEN[kind], id, item.key) is None
        ]
        asked = [self._request(caller, _SEEN[kind], id, item) for kind, id, item in items]
        return {item for item, seen in zip(items, self.policy.visible(asked), strict=True) if seen}

    def extensions(self, caller: Caller) -> Fields:
        """The extensions that this caller can use, with the settings of their servers."""
        return extensions.offered(self.listings(caller))

    def listings(self, caller: Caller) -> dict[str, Listing]:
        if not self.admits(caller):
            return {}
        return {id: known for id in caller.profile.names if (known := self.pool.listing(id)) is not None}

    @staticmethod
    def admits(caller: Caller) -> bool:
        """Whether the caller's profile is for them; it may have been when they came, and not be any more."""
        return caller.profile.admits(caller.principal.id, caller.principal.groups)

    def instructions(self, caller: Caller) -> str:
        """The known instructions of the profile's servers, each under its name, each bounded."""
        names = caller.profile.names
        parts = [
            f"[{names[id]}]\n{listing.instructions[:MAX_INSTRUCTIONS_CHARS]}"
            for id, listing in self.listings(caller).items()
            if listing.instructions
        ]
        return "\n\n".join(parts)


def _ticket(caller: Caller, method: str, target: Target, arguments: str) -> Ticket:
    return Ticket(caller.principal.id, caller.profile.name, method, target.item, arguments, 0.0, target.server)
