"""`lockgate check`: is this machine and this configuration fit to serve, and do the servers answer?

Knows what to print and when to fail."""

from __future__ import annotations

import shutil
from typing import Annotated, Any

import typer
from rich.table import Table

from gateway import errors
from gateway.chatstream import is_elsewhere
from gateway.commands.running import AsJson, ProfileOption, out, print_json, run, settings, shown
from gateway.gateway import Gateway
from gateway.running import find_running


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
    rows: list[dict[str, Any]] = []

    def note(check: str, ok: bool, finding: str) -> None:
        rows.append({"check": check, "ok": ok, "finding": finding})

    running = find_running(wanted)
    if running is not None:
        note(
            "gateway",
            not start,
            f"running at {running.url}" + ("; stop it to check with --start" if start else ""),
        )
        return rows
    async with Gateway(wanted) as gateway:
        if gateway.no_engine and wanted.runtime == "docker":
            raise errors.SettingsError(f"LOCKGATE_RUNTIME=docker, but {gateway.no_engine}")
        note(
            "catalog",
            True,
            f"{len(gateway.catalog.entries)} entries, {len(gateway.catalog.profiles)} profiles",
        )
        sandbox = "bubblewrap" if shutil.which("bwrap") else "no sandbox: install bubblewrap"
        engine = gateway.no_engine or f"engine at {wanted.docker_host}"
        note(
            "containers",
            True,
            f"{engine}; processes: {sandbox}",
        )
        stored = [model.ref for model in gateway.models.stored()]
        is_there = wanted.model in stored or is_elsewhere(wanted.model)
        note(
            "model",
            is_there,
            wanted.model if is_there else f"not fetched: lockgate model pull {wanted.model}",
        )
        if start:
            for id in gateway.catalog.profile(profile or wanted.profile).names:
                try:
                    upstream = await gateway.pool.connection(id)
                    listing = await gateway.pool.learn(id)
                    finding = f"{len(listing.tools)} tools, MCP {upstream.facts.revision if upstream.facts else '?'}"
                    note(f"server {id}", True, f"{finding}, {gateway.runtime_name(gateway.pool.servers[id].entry)}")
                except errors.UpstreamError as exc:
                    note(f"server {id}", False, str(exc))
    return rows
