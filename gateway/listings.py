"""What each server offers, as it said itself: recorded, so that listing starts nothing.

Knows files and raw items; not who may see them nor under which names."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import msgspec
from msgspec import Raw

from catalog import Entry
from gateway import errors
from gateway.upstream import Upstream
from gateway.wire import envelope, headers
from gateway.wire.envelope import WireError
from gateway.wire.revisions import Era
from policies import Facts

FORMAT: Final = 2


class Item(msgspec.Struct, frozen=True):
    """One tool, prompt, resource or template: its key and its JSON as the server sent it."""

    key: str
    raw: Raw


class Listing(msgspec.Struct, frozen=True, dict=True):
    """Everything one server offers. `digest` is that of the catalog entry that ran."""

    digest: str
    tools: tuple[Item, ...] = ()
    prompts: tuple[Item, ...] = ()
    resources: tuple[Item, ...] = ()
    templates: tuple[Item, ...] = ()
    capabilities: dict[str, Raw] = {}
    instructions: str = ""
    server_info: Raw = Raw(b"{}")
    era: Era = "legacy"
    format: int = FORMAT

    @cached_property
    def mirrored(self) -> dict[str, dict[headers.Path, tuple[str, str]]]:
        """The arguments each tool wants repeated in HTTP headers, for the tools that want any."""
        return {tool.key: found for tool in self.tools if (found := header_annotations(tool))}

    @cached_property
    def _raw_tools(self) -> dict[str, Raw]:
        return {tool.key: tool.raw for tool in self.tools}

    @cached_property
    def _facts(self) -> dict[tuple[str, tuple[str, ...]], Facts]:
        return {}

    def facts(self, tool: str, categories: tuple[str, ...]) -> Facts:
        """What policy may know of a tool; of a tool that is not listed, what holds for any."""
        found = self._facts.get((tool, categories))
        if found is None:
            raw = self._raw_tools.get(tool)
            if raw is None:
                return Facts(categories)
            found = self._facts[tool, categories] = _facts(raw, categories)
        return found

    @cached_property
    def _digests(self) -> dict[str, str]:
        return {}

    def definition(self, tool: str) -> Raw | None:
        """A tool as its server listed it."""
        return self._raw_tools.get(tool)

    def tool_digest(self, tool: str) -> str:
        """A short fingerprint of a tool's definition; empty if it is not listed."""
        found = self._digests.get(tool)
        if found is None:
            raw = self._raw_tools.get(tool)
            if raw is None:
                return ""
            found = self._digests[tool] = hashlib.sha256(raw).hexdigest()[:16]
        return found

    def differs(self, before: Listing | None) -> set[str]:
        """Which of tools, prompts and resources are not as before."""
        if before is None:
            return {"tools", "prompts", "resources"}
        lists = {
            "tools": self.tools == before.tools,
            "prompts": self.prompts == before.prompts,
            "resources": (self.resources, self.templates) == (before.resources, before.templates),
        }
        return {name for name, same in lists.items() if not same}


class _Tool(msgspec.Struct):
    """The members of a tool that policy looks at."""

    annotations: Any = None
    input_schema: Any = msgspec.field(name="inputSchema", default=None)


_decode_tool: Final = msgspec.json.Decoder(_Tool).decode


def _facts(raw: Raw, categories: tuple[str, ...]) -> Facts:
    """Only true and false count as hints; anything else is what the protocol assumes of a tool without them."""
    tool = _decode_tool(raw)
    hints = tool.annotations if isinstance(tool.annotations, dict) else {}
    return Facts(
        categories,
        read_only=hints.get("readOnlyHint") is True,
        destructive=hints.get("destructiveHint") is not False,
        idempotent=hints.get("idempotentHint") is True,
        open_world=hints.get("openWorldHint") is not False,
        parameters=tool.input_schema if isinstance(tool.input_schema, dict) else {},
    )


class Kind(msgspec.Struct, frozen=True):
    """One of the four lists: its method, the member that holds the items, and the member that names one."""

    method: str
    member: str
    key: str
    capability: str


TOOLS: Final = Kind("tools/list", "tools", "name", "tools")
PROMPTS: Final = Kind("prompts/list", "prompts", "name", "prompts")
RESOURCES: Final = Kind("resources/list", "resources", "uri", "resources")
TEMPLATES: Final = Kind("resources/templates/list", "resourceTemplates", "uriTemplate", "resources")


async def learn(upstream: Upstream, entry: Entry) -> Listing:
    """Ask a connected server for everything it offers.

    An item that is not valid costs that item; its loss is noted in the server's log. What a server lists is shown to
    all callers: over a connection that holds one principal's own credential, resources and instructions are not asked
    for, since they may be that principal's alone. Reading one by its URI is not affected.

    Raises:
        UpstreamError: the server does not answer a list it says it has.
    """
    facts = upstream.facts
    if facts is None:
        raise errors.UpstreamUnavailable(f"server {entry.id} is not connected")

    async def fetch(kind: Kind, *, optional: bool = False) -> tuple[Item, ...]:
        if not facts.offers(kind.capability):
            return ()
        try:
            raw_items = await upstream.list_all(kind.method, kind.member)
        except errors.UpstreamInvalid:
            if optional:
                return ()
            raise
        return _valid(raw_items, kind, upstream)

    return Listing(
        digest=entry.digest,
        tools=await fetch(TOOLS),
        prompts=await fetch(PROMPTS),
        resources=() if upstream.owner else await fetch(RESOURCES),
        templates=await fetch(TEMPLATES, optional=True),
        capabilities=facts.capabilities,
        instructions="" if upstream.owner else facts.instructions,
        server_info=facts.server_info,
        era=facts.era,
    )


def _valid(raw_items: list[Raw], kind: Kind, upstream: Upstream) -> tuple[Item, ...]:
    found: dict[str, Item] = {}
    for raw in raw_items:
        try:
            key = envelope.text(envelope.fields(raw).get(kind.key, Raw(b"")), kind.key)
        except WireError as exc:
            upstream.log.write("gateway", f"{kind.method}: one item dropped: {exc}")
            continue
        if not key or key in found:
            upstream.log.write("gateway", f"{kind.method}: empty or repeated {kind.key} dropped")
            continue
        item = Item(key, Raw(envelope.one_line(bytes(raw))))
        try:
            if kind is TOOLS:
                header_annotations(item)
        except (ValueError, WireError) as exc:
            upstream.log.write("gateway", f"tool {key} dropped: {exc}")
            continue
        found[key] = item
    return tuple(found.values())


def header_annotations(tool: Item) -> dict[headers.Path, tuple[str, str]]:
    """The `x-mcp-header` annotations of a tool's input schema.

    Raises:
        ValueError: one is where it must not be.
        WireError: the tool holds a value that no decoder takes.
    """
    if headers.ANNOTATION.encode() not in bytes(tool.raw):
        return {}
    return headers.annotated(envelope.value(tool.raw).get("inputSchema"))


class ListingStore:
    """One file a server, replaced atomically; a file for another version of the entry is ignored."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._decoder = msgspec.json.Decoder(Listing)

    def load(self, entry: Entry) -> Listing | None:
        try:
            content = self._path(entry).read_bytes()
        except OSError:
            return None
        try:
            listing = self._decoder.decode(content)
        except msgspec.DecodeError:
            # Written by another version or damaged: the server is asked again.
            return None
        return listing if listing.digest == entry.digest and listing.format == FORMAT else None

    def save(self, entry: Entry, listing: Listing) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._path(entry)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(envelope.encode(listing))
        temporary.replace(path)

    def _path(self, entry: Entry) -> Path:
        return self._folder / f"{entry.id}.json"
