"""How each method names its item, and what an answer looks like on its way back.

Pure. Knows names, params and results; not whether a call is allowed or who carries it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from msgspec import Raw

from gateway import errors, surface, tasks
from gateway.audit import Record
from gateway.bridge import InputRequired, Retry, Ticket
from gateway.listings import PROMPTS, RESOURCES, TEMPLATES, TOOLS, Kind
from gateway.redaction import MARK
from gateway.surface import Surface, Target
from gateway.upstream import Reply
from gateway.wire import envelope
from gateway.wire.envelope import Fields, WireError
from policies import Action

LISTS: Final[Mapping[str, Kind]] = {kind.method: kind for kind in (TOOLS, PROMPTS, RESOURCES, TEMPLATES)}

_IS_ERROR: Final = re.compile(rb'"isError"\s*:\s*true')


class Route(NamedTuple):
    """How a method names its item."""

    action: Action
    kind: Kind


ROUTES: Final[Mapping[str, Route]] = {
    "tools/call": Route("call", TOOLS),
    "prompts/get": Route("prompt", PROMPTS),
    "resources/read": Route("read", RESOURCES),
    "completion/complete": Route("complete", PROMPTS),
}


def resolve(view: Surface, route: Route, members: Fields, record: Record) -> Target:
    """Find the item and put its server's own name for it into `members`."""
    if route.action == "complete":
        return _resolve_reference(view, members, record)
    name = envelope.text(members.get(route.kind.key, envelope.ABSENT), route.kind.key)
    record.name = name[:256]
    if route.kind is RESOURCES:
        target = view.resource(name)
    else:
        table = view.tools if route.kind is TOOLS else view.prompts
        found = table.get(name)
        if found is None:
            raise errors.UnknownName(f"Unknown {route.kind.member[:-1]}: {name[:256]}")
        target = found
    members[route.kind.key] = envelope.raw(target.item)
    return target


def checked(
    view: Surface, target: Target, method: str, reply: Reply, record: Record, ticket: Ticket
) -> Reply | InputRequired:
    """What a result must pass before the caller sees it; guards on content have their place here."""
    if reply.result is None:
        record.outcome = "error"
        return Reply(None, surface.rewrite_error(view, target.server, method, reply.error or b"{}"))
    if b'"input_required"' in reply.result:
        members = envelope.fields(reply.result)
        if bytes(members.get("resultType", b"")) == b'"input_required"':
            requests = envelope.fields(members.get("inputRequests", Raw(b"{}")))
            return InputRequired(requests, Retry(members.get("requestState")), ticket)
    if MARK in reply.result:
        record.detail = "secret hidden"
    record.outcome = "tool_error" if _IS_ERROR.search(reply.result) else "ok"
    result = surface.rewrite_uris(view, target.server, method, reply.result)
    return reply if result is reply.result else Reply(result, None)


def denied(route: Route, reason: str) -> Reply:
    """A visible item that policy refuses: for a tool an error the model can read, else a protocol error."""
    if route.action == "call":
        return tool_error(f"Denied by policy: {reason}.")
    return Reply(None, envelope.encode({"code": envelope.INVALID_PARAMS, "message": f"Denied by policy: {reason}."}))


def tool_error(text: str) -> Reply:
    """A tool result that tells the model what went wrong (MCP server/tools, "Error Handling")."""
    return Reply(envelope.encode({"content": [{"type": "text", "text": text}], "isError": True}), None)


def _resolve_reference(view: Surface, members: Fields, record: Record) -> Target:
    """completion/complete names a prompt or a resource template inside `ref`."""
    reference = envelope.fields(members.get("ref", envelope.ABSENT))
    kind = bytes(reference.get("type", b""))
    if kind == b'"ref/prompt"':
        name = envelope.text(reference.get("name", envelope.ABSENT), "ref.name")
        found = view.prompts.get(name)
        key = "name"
    elif kind == b'"ref/resource"':
        name = envelope.text(reference.get("uri", envelope.ABSENT), "ref.uri")
        found = view.templates.get(name) or view.resources.get(name)
        key = "uri"
    else:
        raise WireError(envelope.INVALID_PARAMS, "ref.type must be ref/prompt or ref/resource")
    record.name = name[:256]
    if found is None:
        raise errors.UnknownName(f"Unknown reference: {name[:256]}")
    reference[key] = envelope.raw(found.item)
    members["ref"] = envelope.raw(reference)
    return found


def needs_tasks() -> Reply:
    """The refusal of a call that only clients with tasks may make."""
    error = {"code": envelope.MISSING_CAPABILITY, "message": "this tool is only for clients that take tasks"}
    return Reply(None, envelope.encode({**error, "data": tasks.MISSING}))
