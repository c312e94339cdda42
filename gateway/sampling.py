"""Who answers a server that asks for a language model (sampling): the client that made the call, a model here, nobody.

Knows entries and what clients declare; not how a model answers (sampler.py) or how a client is asked (an era)."""

from __future__ import annotations

from typing import Final

from msgspec import Raw

from catalog import Entry
from gateway import bridge
from gateway.wire import envelope
from gateway.wire.envelope import Fields

CREATE: Final = "sampling/createMessage"
ABLE: Final = envelope.raw({"tools": {}})
"""What the models here can do; they are given no context of other servers (`sampling.context`)."""
EVERYTHING: Final = envelope.fields(b'{"elicitation":{"form":{},"url":{}},"sampling":{"tools":{}},"roots":{}}')
"""For a connection that any client may come to use: what the one of a call cannot answer is declined."""


def told(entry: Entry, capabilities: Fields, *, is_here: bool = True) -> Fields:
    """What the server is told of a client that declares these capabilities, with what is answered here, if that can
    be."""
    match entry.sampling.by:
        case "client":
            return capabilities
        case "nobody" | "local":
            others = {name: raw for name, raw in capabilities.items() if name != "sampling"}
            return {**others, "sampling": ABLE} if is_here and entry.sampling.by == "local" else others
        case "either":
            if not is_here:
                return capabilities
            own = envelope.fields(capabilities["sampling"]) if "sampling" in capabilities else {}
            return {**capabilities, "sampling": envelope.raw({**own, **envelope.fields(ABLE)})}


def asked(entry: Entry, capabilities: Fields) -> Raw | None:
    """The same of the capabilities that let a server ask, for a connection of such a client's own; None if the server
    may ask nothing of it."""
    names = bridge.CAPABILITY_OF.values() if entry.interactive else ("sampling",) if entry.may_ask else ()
    found = told(entry, {name: raw for name, raw in capabilities.items() if name in names})
    return envelope.raw(found) if found else None


def is_answered(entry: Entry | None, method: str, params: bytes, capabilities: Fields) -> bool:
    """Whether anybody answers a question: the client, or a model here."""
    if entry is None:
        return bridge.answerable(method, params, capabilities)
    asked = entry, method, params, capabilities
    return is_for_client(*asked) or is_for_model(*asked)


def is_for_client(entry: Entry, method: str, params: bytes, capabilities: Fields) -> bool:
    """Whether a question may be put to a client with these capabilities."""
    if method == CREATE and entry.sampling.by in ("local", "nobody"):
        return False
    return bridge.answerable(method, params, capabilities)


def is_for_model(entry: Entry, method: str, params: bytes, capabilities: Fields) -> bool:
    """Whether a model here answers it."""
    if method != CREATE or entry.sampling.by not in ("local", "either"):
        return False
    return not is_for_client(entry, method, params, capabilities)
