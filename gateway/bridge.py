"""Questions that servers ask in the middle of a call, carried to clients of either era and back.

Knows how a call waits and how its state is sealed; not who may call what (the door) or how a client is asked (an
era)."""

from __future__ import annotations

import asyncio
import base64
import os
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from msgspec import Raw

from gateway import errors
from gateway.upstream import Call, Question, Upstream
from gateway.wire import envelope
from gateway.wire.envelope import Envelope, Fields, WireError

GATHER_S: Final = 0.03
"""A server may ask several things at once; questions this close together are put to the client as one."""
PARK_S: Final = 600.0
"""How long a call waits for a person."""
MAX_PARKED: Final = 512
MAX_PARKED_PER_PRINCIPAL: Final = 64
NONCE_BYTES: Final = 12
MAX_GATHERED: Final = 32
"""Questions put to a client at once; the others wait for the next round."""
MAX_ROUNDS: Final = 20
"""Times one call may ask; then the server is taken to be going round in circles."""
CAPABILITY_OF: Final[Mapping[str, str]] = {
    "sampling/createMessage": "sampling",
    "elicitation/create": "elicitation",
    "roots/list": "roots",
}


class InputRequired(NamedTuple):
    """The call waits for answers. `requests` maps keys to {method, params}; `continuation` is how it goes on; `ticket`
    says what it belongs to, for an era that must hand it to the client."""

    requests: dict[str, Raw]
    continuation: Parked | Retry | Followed | Held
    ticket: Ticket


class Parked:
    """A call to a legacy server that is still open there, with the questions it waits for. Owns its lease."""

    def __init__(self, upstream: Upstream, call: Call, questions: dict[str, Question]) -> None:
        self.upstream = upstream
        self.call = call
        self.questions = questions

    def answer(self, answers: Mapping[str, Raw]) -> None:
        """Pass on the answers there are; questions without one stay open.

        Raises:
            WireError: an answer is not an object.
        """
        for key, raw in objects({key: raw for key, raw in answers.items() if key in self.questions}).items():
            self.upstream.answer(self.questions.pop(key), bytes(raw))

    @property
    def ended(self) -> asyncio.Event:
        """Set once the server is gone."""
        return self.upstream.ended

    def refuse(self, key: str, error: bytes) -> None:
        """Answer one question with an error."""
        self.upstream.answer(self.questions.pop(key), None, error)

    def requests(self) -> dict[str, Raw]:
        return {key: _request(question.method, question.params) for key, question in self.questions.items()}


class Here(msgspec.Struct, gc=False):
    """What of a call's questions was answered by a model here."""

    n_requests: int = 0
    n_tokens: int = 0
    answers: dict[str, Raw] = {}
    """To be sent to a modern server, together with those that its client is asked for."""

    def kept(self) -> Here:
        """Without the answers, which are sent once."""
        return Here(self.n_requests, self.n_tokens)


class Retry(NamedTuple):
    """A call to a modern server, to be made again with the answers and the server's own state (raw JSON string)."""

    state: Raw | None


class Followed(NamedTuple):
    """A call that became a task of the server's, which the gateway follows for a client that takes none."""

    task: str
    """The server's id for it."""
    answered: tuple[str, ...] = ()
    """Keys of the questions that were put to the client; the server may go on showing them for a while."""


class Held(NamedTuple):
    """A call that a person must approve; nothing of it was sent yet."""

    approval: str


class Resume(NamedTuple):
    """Answers that an era collected itself, for a call it kept hold of."""

    continuation: Parked | Retry | Followed | Held
    answers: dict[str, Raw]
    approved: str = ""
    """The key under which a person approved the call, if one had to."""
    here: Here | None = None


class Ticket(msgspec.Struct, gc=False):
    """What a sealed `requestState` holds. It is good for one principal, method, name and set of arguments."""

    principal: str
    profile: str
    method: str
    name: str
    arguments: str
    expires: float
    server: str
    parked: str = ""
    """Id of a parked call, or empty if the server keeps its own state."""
    state: str = ""
    task: str = ""
    """The server's id for a task that is followed, and `answered` with it."""
    answered: tuple[str, ...] = ()
    held: str = ""
    """Id of the approval that the call waits for."""
    approved: str = ""
    """The key under which a person approved the call."""
    here: Here = msgspec.field(default_factory=Here)


class Seal:
    """Authenticated encryption of tickets with a key that lives as long as this process."""

    def __init__(self) -> None:
        self._aead = AESGCM(AESGCM.generate_key(256))

    def close(self, ticket: Ticket) -> str:
        nonce = os.urandom(NONCE_BYTES)
        sealed = self._aead.encrypt(nonce, envelope.encode(ticket), b"requestState")
        return base64.urlsafe_b64encode(nonce + sealed).decode()

    def open(self, text: str, like: Ticket) -> Ticket:
        """The ticket in a `requestState`, if it belongs to the request described by `like`.

        Raises:
            WireError: forged, altered, expired, or issued for another request.
        """
        refused = WireError(envelope.INVALID_PARAMS, "requestState is not valid for this request")
        try:
            data = base64.urlsafe_b64decode(text.encode("ascii"))
            if base64.urlsafe_b64encode(data).decode() != text:
                raise ValueError("text after the end of the state")  # the decoder ignores it, we do not
            plain = self._aead.decrypt(data[:NONCE_BYTES], data[NONCE_BYTES:], b"requestState")
        except (ValueError, InvalidTag) as exc:
            raise refused from exc
        ticket = msgspec.json.decode(plain, type=Ticket)
        bound = ("principal", "profile", "method", "name", "arguments", "server")
        if ticket.expires < time.time() or any(getattr(ticket, field) != getattr(like, field) for field in bound):
            raise refused
        return ticket


class Parking:
    """Parked calls between two requests of a modern client. Each leaves by being resumed or by running out of time;
    `withdraw` then ends it."""

    def __init__(self, withdraw: Callable[[Parked], None]) -> None:
        self._places: dict[str, tuple[str, Parked, asyncio.TimerHandle]] = {}
        self._withdraw = withdraw

    def enter(self, principal: str, parked: Parked) -> str:
        """
        Raises:
            UpstreamUnavailable: too many calls wait already; the call is withdrawn.
        """
        own = sum(1 for owner, _, _ in self._places.values() if owner == principal)
        if own >= MAX_PARKED_PER_PRINCIPAL or len(self._places) >= MAX_PARKED:
            self._withdraw(parked)
            raise errors.UpstreamUnavailable("too many calls already wait for an answer; finish some first")
        id = secrets.token_hex(16)
        timer = asyncio.get_running_loop().call_later(PARK_S, self._expire, id)
        self._places[id] = (principal, parked, timer)
        return id

    def leave(self, id: str) -> Parked | None:
        """The parked call, once; None if it is gone."""
        place = self._places.pop(id, None)
        if place is None:
            return None
        place[2].cancel()
        return place[1]

    def _expire(self, id: str) -> None:
        parked = self.leave(id)
        if parked is not None:
            self._withdraw(parked)

    def __len__(self) -> int:
        return len(self._places)


async def gather(call: Call, first: Question) -> list[Question]:
    """The question and those that follow at once."""
    questions = [first]
    while len(questions) < MAX_GATHERED:
        try:
            async with asyncio.timeout(GATHER_S):
                item = await call.next()
        except TimeoutError:
            return questions
        if isinstance(item, Question):
            questions.append(item)
        else:
            call.put_back(item)
            return questions
    return questions


def keyed(questions: list[Question]) -> dict[str, Question]:
    """Each question under a key for modern clients: its own id where that is a string, else a number."""
    found: dict[str, Question] = {}
    for question in questions:
        id = envelope.value(question.id)
        key = id[:64] if isinstance(id, str) else f"q{id}"
        while key in found:
            key += "_"
        found[key] = question
    return found


def objects(answers: Mapping[str, Raw]) -> dict[str, Raw]:
    """The same answers.

    Raises:
        WireError: one is not an object.
    """
    for key, raw in answers.items():
        if bytes(raw)[:1] != b"{":
            raise WireError(envelope.INVALID_PARAMS, f"inputResponses.{key[:64]} must be an object")
    return dict(answers)


def _request(method: str, params: bytes) -> Raw:
    body: dict[str, object] = {"method": method}
    if params:
        body["params"] = Raw(params)
    return envelope.raw(body)


def answerable(method: str, params: bytes, capabilities: Fields) -> bool:
    """Whether a client that declared these capabilities can answer such a question."""
    needed = CAPABILITY_OF.get(method)
    if needed is None or needed not in capabilities:
        return False
    if needed == "sampling" and "tools" in envelope.fields(params):
        # For clients that declare it alone (MCP 2025-11-25, client/sampling).
        return "tools" in envelope.fields(capabilities[needed])
    if needed == "elicitation" and bytes(envelope.fields(params).get("mode", envelope.ABSENT)) == b'"url"':
        # An empty `elicitation` means form mode only (MCP 2025-11-25, client/elicitation).
        return "url" in envelope.fields(capabilities[needed])
    return True


def all_answerable(requests: Mapping[str, Raw], capabilities: Fields) -> bool:
    """The same for the questions of one call to a modern server."""
    for raw in requests.values():
        question = envelope.fields(raw)
        method = envelope.text(question.get("method", envelope.ABSENT), "method")
        if not answerable(method, bytes(question.get("params", envelope.ABSENT)), capabilities):
            return False
    return True


def answer_of(answer: Envelope) -> Raw:
    """The result in a legacy client's answer.

    Raises:
        UpstreamInvalid: the client answered an error: the question stays unanswered and the call ends.
    """
    if bytes(answer.result):
        return answer.result
    raise errors.UpstreamInvalid("the client declined to answer the server's question")
