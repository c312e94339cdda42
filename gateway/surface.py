"""What one principal sees in one profile: names, the items behind them, and finished listing pages.

Pure and immutable: built from listings and decisions, thrown away when either changes."""

from __future__ import annotations

import base64
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import msgspec

from catalog import Detail, Profile
from gateway import budget, errors, names
from gateway.budget import Shelf
from gateway.listings import PROMPTS, RESOURCES, TEMPLATES, TOOLS, Item, Kind, Listing
from gateway.wire import envelope
from gateway.wire.envelope import Fields, WireError


@dataclass(frozen=True, slots=True)
class Target:
    """The item behind a public name: the id of what runs, and the name or URI that server knows the item by."""

    server: str
    item: str


@dataclass(frozen=True)
class Page:
    """The items of one list in a fixed order, each finished for output."""

    keys: tuple[str, ...] = ()
    raw: tuple[bytes, ...] = ()


@dataclass(frozen=True)
class Surface:
    """Lookup tables and pages."""

    tools: Mapping[str, Target]
    prompts: Mapping[str, Target]
    resources: Mapping[str, Target]
    templates: Mapping[str, Target]
    readable: Mapping[str, str]
    """Servers that have resources, as they say themselves: their names here, and the ids of what runs."""
    names: Mapping[str, str] = field(default_factory=dict)
    """The id of what runs, to its name here; most have their own."""
    pages: Mapping[str, Page] = field(default_factory=dict)
    single: str | None = None
    """The only server, in a profile with plain names."""
    shelf: Shelf | None = None
    """All tools, in a profile with a budget for those that are listed."""

    def resource(self, uri: str) -> Target:
        """The server that serves a public URI: it need not be listed (links in results often are not), but its server
        must have resources that this caller may see.

        Raises:
            UnknownName: no such server.
        """
        if (target := self.resources.get(uri)) is not None:
            return target
        if self.single is not None:
            unwrapped: tuple[str, str] | None = (self.single, uri)
        else:
            unwrapped = names.unwrap_uri(uri)
        if unwrapped is None or unwrapped[0] not in self.readable:
            raise errors.UnknownName(f"Resource not found: {uri[:256]}")
        return Target(self.readable[unwrapped[0]], unwrapped[1])

    def page(self, kind: Kind, cursor: str | None, size: int) -> bytes:
        """One page of a list as the result of its method.

        Raises:
            BadCursor: not a cursor of this list.
        """
        page = self.pages[kind.method]
        start = bisect_right(page.keys, _after(kind, cursor)) if cursor is not None else 0
        body = b",".join(page.raw[start : start + size])
        if start + size < len(page.keys):
            token = envelope.encode(_cursor(kind, page.keys[start + size - 1]))
            return b'{"%b":[%b],"nextCursor":%b}' % (kind.member.encode(), body, token)
        return b'{"%b":[%b]}' % (kind.member.encode(), body)


def _cursor(kind: Kind, key: str) -> str:
    """An opaque cursor that stays right when items come and go: it names the last item given."""
    return base64.urlsafe_b64encode(msgspec.json.encode([kind.method, key])).decode()


def _after(kind: Kind, cursor: str) -> str:
    try:
        method, key = msgspec.json.decode(base64.urlsafe_b64decode(cursor), type=tuple[str, str])
    except (ValueError, msgspec.DecodeError) as exc:
        raise errors.BadCursor("this cursor was not issued by this server") from exc
    if method != kind.method:
        raise errors.BadCursor(f"this cursor belongs to {method}")
    return key


def build(
    profile: Profile,
    listings: Mapping[str, Listing],
    visible: Callable[[Kind, str, str], bool],
) -> Surface:
    """The surface of a profile. `visible(kind, server, item)` is policy's word on each item, by the id of what
    runs."""
    single = profile.servers[0] if profile.plain_names and len(profile.servers) == 1 else None
    tools: dict[str, Target] = {}
    prompts: dict[str, Target] = {}
    resources: dict[str, Target] = {}
    templates: dict[str, Target] = {}
    out: dict[str, dict[str, bytes]] = {kind.method: {} for kind in (TOOLS, PROMPTS, RESOURCES, TEMPLATES)}
    for server, id in profile.runs.items():
        listing = listings.get(id)
        if listing is None:
            continue
        detail = profile.detail(server)
        shown = [(kind, item) for kind, item in items(listing) if visible(kind, id, item.key)]
        if server in profile.tools:
            shown.sort(key=lambda one: profile.tools[server].index(one[1].key) if one[0] is TOOLS else -1)
        renamed = _renamed(detail, (item.key for kind, item in shown if kind is TOOLS))
        for kind, item in shown:
            public = _public(kind, single, server, renamed.get(item.key, item.key) if kind is TOOLS else item.key)
            members = envelope.fields(item.raw)
            members[kind.key] = envelope.raw(public)
            if kind is TOOLS:
                _strip_tasks(members)
                if item.key in detail.descriptions:
                    members["description"] = envelope.raw(detail.descriptions[item.key])
                if single is None and "_meta" in members:
                    _wrap_view(members, server)
            out[kind.method][public] = envelope.encode(members)
            target = Target(id, item.key)
            if kind is TOOLS:
                tools[public] = target
            elif kind is PROMPTS:
                prompts[public] = target
            elif kind is RESOURCES:
                resources[public] = target
            else:
                templates[public] = target
    listed, shelf = budget.cut(profile.budget, out[TOOLS.method])
    pages = {}
    for method, finished in {**out, TOOLS.method: listed}.items():
        keys = tuple(sorted(finished))
        pages[method] = Page(keys, tuple(finished[key] for key in keys))
    readable = {
        server: id for server, id in profile.runs.items() if id in listings and "resources" in listings[id].capabilities
    }
    return Surface(tools, prompts, resources, templates, readable, profile.names, pages, single, shelf)


def _renamed(detail: Detail, shown: Iterable[str]) -> Mapping[str, str]:
    """The tools that are shown under other names. One whose new name is that of another tool keeps its own: no tool is
    hidden by another."""
    if not detail.rename:
        return {}
    own = {key for key in shown if key not in detail.rename}
    return {key: name for key, name in detail.rename.items() if name not in own}


def items(listing: Listing) -> Iterator[tuple[Kind, Item]]:
    """Everything a server offers, with the list it is in."""
    lists: Iterable[tuple[Kind, tuple[Item, ...]]] = (
        (TOOLS, listing.tools),
        (PROMPTS, listing.prompts),
        (RESOURCES, listing.resources),
        (TEMPLATES, listing.templates),
    )
    for kind, items in lists:
        for item in items:
            yield kind, item


def _public(kind: Kind, single: str | None, server: str, key: str) -> str:
    if kind in (RESOURCES, TEMPLATES):
        return key if single else names.wrap_uri(server, key)
    return names.plain(key) if single else names.qualify(server, key)


def _strip_tasks(tool: Fields) -> None:
    """Say nothing of the tasks of revision 2025-11-25: that is another protocol than the extension offered here, and no
    client could use them through the gateway."""
    execution = tool.get("execution")
    if execution is not None and bytes(execution)[:1] == b"{":
        members = envelope.fields(execution)
        members.pop("taskSupport", None)
        if members:
            tool["execution"] = envelope.raw(members)
        else:
            del tool["execution"]


def _wrap_view(tool: Fields, server: str) -> None:
    """Point a tool's MCP Apps view at the resource clients can read (extension io.modelcontextprotocol/ui)."""
    meta = envelope.fields(tool["_meta"])
    view = meta.get("ui")
    if view is not None and bytes(view)[:1] == b"{":
        members = envelope.fields(view)
        _wrap_member(members, "resourceUri", server)
        meta["ui"] = envelope.raw(members)
    _wrap_member(meta, "ui/resourceUri", server)  # the extension's earlier spelling
    tool["_meta"] = envelope.raw(meta)


# -- results -------------------------------------------------------------------------------------


def rewrite_uris(surface: Surface, id: str, method: str, result: bytes) -> bytes:
    """A server's result with the resource URIs in it as clients must use them; everything else stays byte for byte.

    Touches `contents[].uri` of resources/read and the `resource` and `resource_link` blocks of tools and prompts.
    """
    if surface.single is not None or (method != "resources/read" and b'"resource' not in result):
        return result
    server = surface.names.get(id, id)
    try:
        members = envelope.fields(result)
        if method == "resources/read":
            _each(members, "contents", lambda block: _wrap_member(block, "uri", server))
        elif method == "prompts/get":
            _each(members, "messages", lambda message: _rewrite_message(message, server))
        else:
            _each(members, "content", lambda block: _rewrite_block(block, server))
    except WireError:
        return result
    return envelope.encode(members)


def rewrite_error(surface: Surface, id: str, method: str, error: bytes) -> bytes:
    """A server's error with the URI in it as the client spelled it (`data.uri` of resources/read)."""
    if surface.single is not None or method != "resources/read" or b'"uri"' not in error:
        return error
    try:
        members = envelope.fields(error)
        data = envelope.fields(members.get("data", envelope.ABSENT))
        _wrap_member(data, "uri", surface.names.get(id, id))
        members["data"] = envelope.raw(data)
    except WireError:
        return error
    return envelope.encode(members)


def _each(members: Fields, name: str, change: Callable[[Fields], None]) -> None:
    if name not in members:
        return
    changed = []
    for raw in envelope.items(members[name]):
        if bytes(raw)[:1] == b"{":
            block = envelope.fields(raw)
            change(block)
            changed.append(envelope.raw(block))
        else:
            changed.append(raw)
    members[name] = envelope.raw(changed)


def _rewrite_message(message: Fields, server: str) -> None:
    content = message.get("content")
    if content is not None and bytes(content)[:1] == b"{":
        block = envelope.fields(content)
        _rewrite_block(block, server)
        message["content"] = envelope.raw(block)


def _rewrite_block(block: Fields, server: str) -> None:
    kind = bytes(block.get("type", b""))
    if kind == b'"resource_link"':
        _wrap_member(block, "uri", server)
    elif kind == b'"resource"' and "resource" in block:
        resource = envelope.fields(block["resource"])
        _wrap_member(resource, "uri", server)
        block["resource"] = envelope.raw(resource)


def _wrap_member(block: Fields, name: str, server: str) -> None:
    if name in block:
        block[name] = envelope.raw(names.wrap_uri(server, envelope.text(block[name], name)))
