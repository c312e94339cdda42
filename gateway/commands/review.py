"""`lockgate catalog review`: look at tools that are kept back, and approve or reject them.

Knows what to print; gateway/reviews.py knows what waits and why."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer
from rich.text import Text

from gateway.commands.asking import ask_gateway
from gateway.commands.running import AsJson, err, out, print_json, settings, shown
from gateway.errors import SettingsError, UnknownName
from gateway.gateway import DEFINITIONS
from gateway.reviews import Reviews
from gateway.running import find_running

NUMBER_DIGITS: Final = 16
ToolNames = Annotated[list[str] | None, typer.Argument(help="Tools to settle, as their server names them.")]


def review(
    server: Annotated[str | None, typer.Argument(help="The entry whose tools to look at; default: all.")] = None,
    tools: ToolNames = None,
    approve: Annotated[bool, typer.Option("--approve", help="Offer the named tools from now on.")] = False,
    reject: Annotated[bool, typer.Option("--reject", help="Keep the named tools back while they say this.")] = False,
    every: Annotated[bool, typer.Option("--all", help="Settle every tool of the server that waits.")] = False,
    seen: Annotated[
        list[str] | None,
        typer.Option("--seen", help="The number shown beside a tool: settle only what still says the same."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show tools that changed since they were approved, or that give orders, and settle them.

    A tool that waits is not offered to clients; the other tools of its server are.
    """
    if approve and reject:
        raise SettingsError("choose one of --approve and --reject")
    if (approve or reject) and (server is None or bool(tools) == every):
        raise SettingsError("name the server, and its tools or --all")
    pending = [one for one in _pending() if server in (None, one["server"])]
    if not (approve or reject):
        _show(pending, as_json)
        return
    names = [one["tool"] for one in pending] if every else list(tools or ())
    digests = {one["tool"]: one["digest"] for one in pending}
    if seen and (others := [name for name in names if _number(digests.get(name, "")) not in seen]):
        raise SettingsError(f"{', '.join(others)} of {server} does not say what was shown; look again")
    for name in names:
        _settle(str(server), name, approve, digests.get(name, ""))
        if not as_json:
            out.print(f"{server}: {name} is {'approved' if approve else 'rejected'}")
    if as_json:
        print_json({"server": server, "tools": names, "approved": approve})
    elif not names:
        out.print("nothing waits for review")


def _show(pending: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(pending)
        return
    for one in pending:
        out.print(Text(shown(f"{one['server']}  {one['tool']}  {one['why']}  {_number(one['digest'])}"), style="bold"))
        for finding in one["findings"]:
            out.print(Text(shown(f"  ! {finding}"), style="yellow"))
        for line in one["difference"]:
            style = "green" if line.startswith("+") else "red" if line.startswith("-") else ""
            out.print(Text(shown(f"  {line}"), style=style))
    if not pending:
        out.print("nothing waits for review")
        return
    first = pending[0]
    settle = f"lockgate catalog review {first['server']} {first['tool']} --approve --seen {_number(first['digest'])}"
    err.print()
    err.print(Text(shown(f"Settle with: {settle} (or --reject)")), soft_wrap=True)


def _number(digest: str) -> str:
    """Enough of a digest to tell one definition from the next that a server may make."""
    return digest.partition(":")[2][:NUMBER_DIGITS]


def _pending() -> list[dict[str, Any]]:
    if find_running(settings()) is None:
        return [asdict(one) for one in _own_reviews().pending()]
    found: list[dict[str, Any]] = ask_gateway(lambda client: client.admin("GET", "/reviews"))["reviews"]
    return found


def _settle(server: str, tool: str, approve: bool, seen: str) -> None:
    if find_running(settings()) is None:
        reviews = _own_reviews()
        try:
            (reviews.approve if approve else reviews.reject)(server, tool, seen)
        except UnknownName as exc:
            raise SettingsError(str(exc)) from exc
        return
    decision = "approve" if approve else "reject"
    path = f"/reviews/{quote(server, safe='')}/{decision}?tool={quote(tool, safe='')}&seen={quote(seen)}"
    ask_gateway(lambda client: client.admin("POST", path))


def _own_reviews() -> Reviews:
    """Without a gateway the files are ours; the next one reads them."""
    wanted = settings()
    return Reviews(wanted.catalog_lock, wanted.state_dir / DEFINITIONS, lambda *what: None)
