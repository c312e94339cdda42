"""`lockgate check`: is this machine and this configuration fit to serve, and do the servers answer?

Knows what to print and when to fail."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.table import Table

from gateway import errors
from gateway.chatstream import GatewayRefused, is_elsewhere
from gateway.client import GatewayClient, gateway_client
from gateway.commands.running import AsJson, ProfileOption, counted, out, print_json, run, settings, shown
from gateway.running import find_running
from gateway.settings import Settings


def check(
    as_json: AsJson = False,
    profile: ProfileOption = None,
    start: Annotated[bool, typer.Option("--start", help="Also start each server and list its tools.")] = False,
) -> None:
    """Check settings, catalogue, engine, model and, with --start, every server; exit code 1 if anything fails."""
    rows = run(_work(profile, start))
    failed = [row for row in rows if not row["ok"]]
    if as_json:
        print_json({"ok": not failed, "checks": rows})
    else:
        table = Table("", "check", "finding", box=None, pad_edge=False)
        for row in rows:
            table.add_row("ok" if row["ok"] else "FAIL", row["check"], shown(row["finding"]))
        out.print(table)
    if failed:
        raise typer.Exit(1)


async def _work(profile: str | None, start: bool) -> list[dict[str, Any]]:
    wanted = settings()
    running = find_running(wanted)
    if running is None:
        return await _check_alone(wanted, profile, start)
    rows = [_row("gateway", True, f"running at {running.url}, process {running.pid}")]
    async with gateway_client(wanted) as client:
        rows += await _check_running(client, profile, start)
    return rows


def _row(check: str, ok: bool, finding: str) -> dict[str, Any]:
    return {"check": check, "ok": ok, "finding": finding}


async def _check_running(client: GatewayClient, profile: str | None, start: bool) -> list[dict[str, Any]]:
    """What the running gateway says of itself; with `start` it is asked to start each server of the profile."""
    found = await client.admin("GET", f"/servers?profile={quote(profile or '', safe='')}")
    containers = found["containers"]
    rows = [_row("containers", containers["state"] != "waiting", containers["reason"] or containers["state"])]
    for known in found["servers"]:
        path = f"/servers/{quote(known['id'], safe='')}/start"
        try:
            server = await client.admin("POST", path) if start else known
            rows.append(_row(f"server {known['id']}", not server.get("error"), _finding(server)))
        except GatewayRefused as exc:
            rows.append(_row(f"server {known['id']}", False, str(exc)))
    return rows


def _finding(server: Mapping[str, Any]) -> str:
    if server.get("error"):
        return str(server["error"])
    tools = "tools unknown" if server.get("tools") is None else counted(server["tools"], "tool")
    return f"{server['state']}, {tools}, {server['runtime']}"


async def _check_alone(wanted: Settings, profile: str | None, start: bool) -> list[dict[str, Any]]:
    from gateway.gateway import Gateway  # a second's work that asking a running one does not need

    async with Gateway(wanted) as gateway:
        if gateway.no_engine and wanted.runtime == "docker":
            raise errors.SettingsError(f"LOCKGATE_RUNTIME=docker, but {gateway.no_engine}")
        entries, profiles = len(gateway.catalog.entries), len(gateway.catalog.profiles)
        sandbox = "bubblewrap" if shutil.which("bwrap") else "no sandbox: install bubblewrap"
        engine = gateway.no_engine or f"engine at {wanted.docker_host}"
        stored = [model.ref for model in gateway.models.stored()]
        is_there = wanted.model in stored or is_elsewhere(wanted.model)
        rows = [
            _row("catalog", True, f"{entries} entries, {profiles} profiles"),
            _row("containers", True, f"{engine}; processes: {sandbox}"),
            _row("model", is_there, wanted.model if is_there else f"not fetched: lockgate model pull {wanted.model}"),
        ]
        for id in gateway.catalog.profile(profile or wanted.profile).names if start else ():
            try:
                upstream = await gateway.pool.connection(id)
                listing = await gateway.pool.learn(id)
                revision = upstream.facts.revision if upstream.facts else "?"
                runtime = gateway.runtime_name(gateway.pool.servers[id].entry)
                rows.append(
                    _row(f"server {id}", True, f"{counted(len(listing.tools), 'tool')}, MCP {revision}, {runtime}")
                )
            except errors.UpstreamError as exc:
                rows.append(_row(f"server {id}", False, str(exc)))
        return rows
