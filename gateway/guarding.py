"""The content guards at work: on what goes to a server and on all that comes back from it.

Knows entries, payloads and records; what guards look for is the business of policies/guards."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec
from anyio import to_thread
from msgspec import Raw

from catalog import Entry, Guarding
from gateway import errors
from gateway.audit import Record
from gateway.listings import Listing
from gateway.routes import tool_error
from gateway.upstream import Notice, Question, Reply
from gateway.wire import envelope
from gateway.wire.envelope import Fields, WireError
from policies.guards import DEFAULTS, GUARDS, Guards, Mode, Scan, Scanner, Side, scanner
from policies.guards.modes import MAX_BYTES, MAX_ITEMS

META: Final = "lockgate/guards"
"""The member of a result's `_meta` that says what was found in it."""
LONG: Final = 200_000
"""Bytes from which on a look takes long enough to be taken in a thread of its own."""
_OF_TEXTS: Final = "pattern|enum|const|format|minLength|maxLength|not|if|uniqueItems|patternProperties|propertyNames"
"""What in a schema a replaced text could break."""
_OF_NAMES: Final = r"additionalProperties|required|\$ref"
"""And what the replaced name of a member could."""
_BREAKS_TEXTS: Final = re.compile(rf'"(?:{_OF_TEXTS})"\s*:'.encode())
_BREAKS_NAMES: Final = re.compile(rf'"(?:{_OF_TEXTS}|{_OF_NAMES})"\s*:'.encode())


class _Sides(NamedTuple):
    said: Guarding
    arguments: Scanner
    results: Scanner


class ContentGuards:
    """One for the whole gateway. Keeps the scanners of each server ready."""

    def __init__(self, entry: Callable[[str], Entry | None], known: Callable[[bytes], bytes] | None = None) -> None:
        """`entry` says what is known of a server by its id. `known` takes the secrets that were handed to servers out
        of bytes; it returns the same object if there are none."""
        self._entry = entry
        self._known = known
        self._sides: dict[str, _Sides] = {}

    def of(self, server: str) -> _Sides:
        """The scanners of a server; of one that is gone since its call began, those it had."""
        entry, found = self._entry(server), self._sides.get(server)
        if found is None or (entry is not None and found.said is not entry.guards):
            said = entry.guards if entry is not None else Guarding()
            found = self._sides[server] = _Sides(said, _scanner("arguments", said), _scanner("results", said))
        return found

    def arguments(self, server: str, members: Fields, record: Record) -> Reply | None:
        """Look at what a caller sends; replaced in `members` where that is the mode. A reply refuses the call."""
        raw = members.get("arguments")
        if raw is None:
            return None
        scan, sent = self.of(server).arguments, bytes(raw)
        try:
            done = scan.scan(sent, self._known)
        except msgspec.DecodeError as exc:
            raise WireError(envelope.INVALID_PARAMS, f"the arguments cannot be read: {exc}") from exc
        if done is None:
            return None
        _note(record, "arguments", done, scan)
        if done.blocked is not None:
            record.outcome, record.detail = "denied", f"guard: {done.blocked}"
            return _refusal(record, f"Refused: the arguments hold {_kinds(done)}, which may not go to this server.")
        if done.payload is not sent:
            members["arguments"] = Raw(done.payload)
        return None

    async def result(self, server: str, listing: Listing | None, reply: Reply, record: Record) -> Reply:
        """Look at a server's answer; the very same one if nothing is to be said of it."""
        scan = self.of(server).results
        payload = reply.result if reply.result is not None else reply.error or b"{}"
        done = _scan(scan, payload) if len(payload) < LONG else await to_thread.run_sync(_scan, scan, payload)
        if done is None:
            return reply
        _note(record, "results", done, scan)
        if done.structure_changed and done.blocked is None and _breaks(listing, record.item, done):
            record.detail = "guard: a replaced text would not fit the tool's schema"
            return _refusal(record, f"Kept back: the result holds {_kinds(done)}, and cannot do without.")
        if done.blocked is not None:
            record.detail = f"guard: {done.blocked}"
            return _refusal(record, f"Kept back: the result holds {_kinds(done)}.")
        if reply.result is None:
            return Reply(None, done.payload)
        return Reply(_tagged(scan, done), None)

    def notice(self, server: str, notice: Notice) -> Notice | None:
        """A notification as it may go on; None if it may not."""
        params = self._passed(server, notice.params)
        return notice if params is notice.params else None if params is None else notice._replace(params=params)

    def questions(self, server: str, questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
        """Those of a server's questions that may be asked, as they may be, and those that may not."""
        asked, kept = list[Question](), list[Question]()
        for question in questions:
            params = self._passed(server, question.params)
            if params is None:
                kept.append(question)
            else:
                asked.append(question if params is question.params else question._replace(params=params))
        return asked, kept

    def requests(self, server: str, requests: Mapping[str, Raw], record: Record) -> dict[str, Raw] | Reply:
        """The questions of a server's task as they may be asked; a reply refuses them all."""
        scan, asked = self.of(server).results, dict[str, Raw]()
        for key, raw in requests.items():
            done = _scan(scan, bytes(raw))
            if done is None:
                asked[key] = raw
                continue
            _note(record, "results", done, scan)
            if done.blocked is not None:
                record.detail = f"guard: {done.blocked}"
                return _refusal(record, f"Kept back: a question of the server holds {_kinds(done)}.")
            asked[key] = Raw(done.payload)
        return asked

    def _passed(self, server: str, params: bytes) -> bytes | None:
        done = _scan(self.of(server).results, params) if params else None
        if done is None:
            return params
        return None if done.blocked is not None else done.payload


def _scan(scan: Scanner, payload: bytes) -> Scan | None:
    try:
        return scan.scan(payload)
    except msgspec.DecodeError as exc:
        raise errors.UpstreamInvalid(f"the content guards cannot read what the server says: {exc}") from exc


def _scanner(side: Side, said: Guarding) -> Scanner:
    part = said.arguments if side == "arguments" else said.results
    modes = dict(DEFAULTS[side])
    for guard in GUARDS:
        if (mode := getattr(part, guard, None)) is not None:
            modes[guard] = mode
    return scanner(Guards.of(modes, said.results.max_bytes or MAX_BYTES, said.results.max_items or MAX_ITEMS))


def _note(record: Record, side: Side, done: Scan, scan: Scanner) -> None:
    """What the record says: side, guard, mode, how many, and of which kinds; never the text."""
    modes: dict[str, Mode] = dict(scan.guards.modes)
    found = (f"{side}: {guard} {modes[guard]} {count}" for guard, count in done.counts.items())
    record.guards = (*record.guards, *found, f"{side}: {_kinds(done)}")


def _kinds(done: Scan) -> str:
    return ", ".join(done.kinds)


def _refusal(record: Record, text: str) -> Reply:
    """Told to the model where it can read it, else to the client."""
    if record.outcome != "denied":
        record.outcome = "kept_back"
    if record.method == "tools/call":
        return tool_error(text)
    return Reply(None, envelope.encode({"code": envelope.INVALID_PARAMS, "message": text}))


def _tagged(scan: Scanner, done: Scan) -> bytes:
    told = {guard: done.counts[guard] for guard, mode in scan.guards.modes if done.counts[guard] and mode != "warn"}
    if not told:
        return done.payload
    members = envelope.fields(done.payload)
    meta = envelope.fields(members.get("_meta", envelope.ABSENT))
    members["_meta"] = envelope.raw({**meta, META: told})
    return envelope.encode(members)


def _breaks(listing: Listing | None, tool: str, done: Scan) -> bool:
    """Whether structured content with other texts might not fit its schema any more. A text for a text fits, unless
    the schema says more of texts than that."""
    raw = listing.definition(tool) if listing is not None else None
    schema = envelope.fields(raw).get("outputSchema") if raw is not None else None
    if schema is None:
        return False
    return (_BREAKS_NAMES if done.keys_changed else _BREAKS_TEXTS).search(bytes(schema)) is not None
