"""`lockgate profile add`, `set` and the like: one thing about one profile changed, wherever it is written.

Knows which part of a profile each command is about; what may stand there is judged before anything is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any, Final

import typer
from ruamel.yaml.comments import CommentedMap

from gateway import policyfiles, profilefile
from gateway.commands.profile import Name, app, written
from gateway.commands.running import settings
from gateway.errors import SettingsError
from gateway.profilefile import sequence
from gateway.profiles import ProfileFiles

PAIR: Final = "NAME=VALUE"
Server = Annotated[str, typer.Argument(help="The name a server has in the profile.")]


@app.command("add")
def add(
    name: Name,
    servers: Annotated[list[str], typer.Argument(help="Entries of the catalogue.")],
    alias: Annotated[
        str | None, typer.Option("--as", help="Another name for the one server, which then runs apart.")
    ] = None,
) -> None:
    """Add servers to a profile."""
    if alias is not None and len(servers) != 1:
        raise SettingsError("--as gives one server a name; name one entry")

    def change(profile: CommentedMap) -> None:
        profile["servers"].extend([alias] if alias else servers)
        if alias:
            _member(profile, "details", alias)["server"] = servers[0]

    _changed(name, change)


@app.command("remove")
def remove(name: Name, servers: Annotated[list[str], typer.Argument(help="Names in the profile.")]) -> None:
    """Remove servers from a profile, with all that is particular about them."""

    def change(profile: CommentedMap) -> None:
        for server in servers:
            _known(profile, server)
            profile["servers"].remove(server)
            for key in ("details", "tools"):
                profile.get(key, {}).pop(server, None)
                _tidy(profile, key)

    _changed(name, change)


@app.command("set")
def set_(
    name: Name,
    server: Server,
    values: Annotated[list[str], typer.Argument(help=f"{PAIR}; NAME= removes the value.")],
) -> None:
    """Give a server settings, of the types its entry lists; a list is written with commas."""
    catalog = ProfileFiles(settings()).catalog()
    entry = catalog.entry(catalog.profile(name).entry_id(server))
    types = {setting.name: setting.type for setting in entry.config}

    def pairs() -> Iterator[tuple[str, Any]]:
        for key, value in map(_pair, values):
            yield key, _typed(value, types.get(key, "string")) if value else None

    _fill(name, server, "settings", pairs)


@app.command("secret")
def secret(
    name: Name,
    server: Server,
    values: Annotated[list[str], typer.Argument(help="PLACE=NAME, as in github.token=work/github; PLACE= removes it.")],
) -> None:
    """Say which kept secret fills a place of a server. The secret itself is never given here."""

    _fill(name, server, "secrets", lambda: ((place, kept or None) for place, kept in map(_pair, values)))


@app.command("select")
def select(
    name: Name,
    server: Server,
    tools: Annotated[list[str] | None, typer.Argument(help="The only tools to show, as the server names them.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Show all of them.")] = False,
) -> None:
    """Choose the tools of a server that the profile shows."""
    if every == bool(tools):
        raise SettingsError("name the tools to show, or --all")

    def change(profile: CommentedMap) -> None:
        _known(profile, server)
        chosen = _member(profile, "tools")
        if every:
            chosen.pop(server, None)
        else:
            chosen[server] = sequence(list(tools or []))
        _tidy(profile, "tools")

    _changed(name, change)


@app.command("rename-tool")
def rename_tool(
    name: Name,
    server: Server,
    tool: Annotated[str, typer.Argument(help="The tool, as its server names it.")],
    new: Annotated[str, typer.Argument(help="Its name here; left out, its own again.")] = "",
) -> None:
    """Give a tool another name in a profile."""

    _fill(name, server, "rename", lambda: [(tool, new or None)])


@app.command("bind")
def bind(
    name: Name,
    principals: Annotated[list[str] | None, typer.Option("--principal", help="Somebody it is for.")] = None,
    groups: Annotated[list[str] | None, typer.Option("--group", help="A group it is for.")] = None,
    everybody: Annotated[bool, typer.Option("--everybody", help="It is for everybody again.")] = False,
) -> None:
    """Say whom a profile is for, in place of what was said before; to others it does not exist."""
    if everybody == bool(principals or groups):
        raise SettingsError("name somebody with --principal or --group, or --everybody")

    def change(profile: CommentedMap) -> None:
        bound = {"principals": principals, "groups": groups}
        profile["for"] = CommentedMap({key: sequence(names) for key, names in bound.items() if names})
        _tidy(profile, "for")

    _changed(name, change)


@app.command("budget")
def budget(
    name: Name,
    tools: Annotated[int | None, typer.Option("--tools", help="How many tools are listed.")] = None,
    chars: Annotated[int | None, typer.Option("--chars", help="How long their definitions are together.")] = None,
    every: Annotated[bool, typer.Option("--all", help="List all tools again.")] = False,
) -> None:
    """Limit what a profile lists; the first tools are, and two of the gateway's own find and call the others."""
    if every == (tools is not None or chars is not None):
        raise SettingsError("give --tools or --chars, or --all")

    def change(profile: CommentedMap) -> None:
        limits = {"tools": tools, "chars": chars}
        profile["budget"] = CommentedMap({key: limit for key, limit in limits.items() if limit is not None})
        _tidy(profile, "budget")

    _changed(name, change)


@app.command("policy")
def policy(
    name: Name,
    chosen: Annotated[str, typer.Argument(metavar="POLICY", help="The name of a policy, see docs/policy.md.")],
) -> None:
    """Choose the policy that says who may do what with a profile."""
    known = policyfiles.read_texts(settings())
    if chosen not in known:
        raise SettingsError(f"there is no policy {chosen}; there are {', '.join(sorted(known))}")

    def change(profile: CommentedMap) -> None:
        profile["policy"] = chosen

    _changed(name, change)


def _changed(name: str, change: Callable[[CommentedMap], None]) -> None:
    written(name, lambda text: profilefile.changed(text, name, change), ProfileFiles(settings()))


def _fill(name: str, server: str, part: str, pairs: Callable[[], Iterable[tuple[str, Any]]]) -> None:
    """Change members of one part of a server's details; None removes one."""

    def change(profile: CommentedMap) -> None:
        _known(profile, server)
        given = _member(profile, "details", server, part)
        for key, value in pairs():
            if value is None:
                given.pop(key, None)
            else:
                given[key] = value
        _tidy(profile, "details", server, part)

    _changed(name, change)


def _known(profile: CommentedMap, server: str) -> None:
    if server not in profile["servers"]:
        raise SettingsError(f"the profile has no server {server}; it has {', '.join(profile['servers'])}")


def _member(profile: CommentedMap, *path: str) -> CommentedMap:
    for key in path:
        profile = profile.setdefault(key, CommentedMap())
    return profile


def _tidy(profile: CommentedMap, *path: str) -> None:
    """Take out what was left empty, from the inside out."""
    for depth in range(len(path), 0, -1):
        inside = profile
        for key in path[: depth - 1]:
            inside = inside.get(key, CommentedMap())
        if inside.get(path[depth - 1]) == {}:
            del inside[path[depth - 1]]


def _pair(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not equals or not key:
        raise SettingsError(f"write {PAIR}, not {text if not equals else '=...'}")
    return key, value


def _typed(text: str, kind: str) -> Any:
    """The value as the type of its setting; what does not fit stays text, which the check of the profile refuses."""
    try:
        match kind:
            case "integer":
                return int(text)
            case "number":
                return float(text)
            case "list":
                return sequence(text.split(","))
    except ValueError:
        return text
    return {"true": True, "false": False}.get(text, text) if kind == "boolean" else text


__all__ = ["app"]
