"""`lockgate audit`: see, search, verify and hand on what the gateway recorded.

Knows arguments and output; gateway/auditlog.py reads, gateway/auditchain.py verifies."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from gateway import auditchain, auditlog
from gateway.auditexport import FORMATS
from gateway.commands.running import AsJson, out, print_json, settings, shown
from gateway.errors import SettingsError

app = typer.Typer(no_args_is_help=True)
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
Since = Annotated[str, typer.Option("--since", help="Only what is younger: 30m, 12h, 7d.")]


@app.command()
def tail(
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, help="How many calls.")] = 20, as_json: AsJson = False
) -> None:
    """The last calls."""
    _print(list(deque(auditlog.ends(settings().state_dir), maxlen=lines)), as_json)


@app.command()
def search(
    principal: Annotated[str, typer.Option("--principal", help="Who called.")] = "",
    server: Annotated[str, typer.Option("--server", help="An entry's id.")] = "",
    item: Annotated[str, typer.Option("--item", help="A tool, prompt or URI, as its server names it.")] = "",
    outcome: Annotated[str, typer.Option("--outcome", help="ok, denied, unknown, tool_error, upstream …")] = "",
    policy: Annotated[str, typer.Option("--policy", help="A policy that took part, as mine:no-writes.")] = "",
    call: Annotated[str, typer.Option("--call", help="The id of a call.")] = "",
    since: Since = "",
    as_json: AsJson = False,
) -> None:
    """Calls that match everything given."""
    wanted = {"principal": principal, "server": server, "item": item, "outcome": outcome, "call": call}
    begin = begin_of(since)
    found = [
        record
        for record in auditlog.ends(settings().state_dir)
        if record["at"] >= begin
        and all(record.get(name) == value for name, value in wanted.items() if value)
        and (not policy or policy in record.get("policies", ()))
    ]
    _print(found, as_json)


@app.command()
def verify(
    public_key: Annotated[
        str, typer.Option("--public-key", help="The key's public half in hex, as a former verify printed it.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Is every record as it was written? Names the first that is not, and ends with 1."""
    state = settings().state_dir
    public = _public(state, public_key)
    report = verified(state, public_key)
    if as_json:
        print_json({**asdict(report), "public_key": public.hex()})
    elif report.problem:
        out.print(Text(shown(f"{report.where} {report.problem}"), style="red"))
    else:
        out.print(
            f"{report.records} records are as they were written; {report.checkpoints} signed checkpoints hold all but "
            f"the last {report.unsigned}"
        )
        out.print(f"public key: {public.hex()}")
    if report.problem:
        raise typer.Exit(1)


def verified(state: Path, public_key: str = "") -> auditchain.Report:
    """Whether everything in a state folder is as it was written.

    Raises:
        SettingsError: it cannot be read, or there is no key to verify it with.
    """
    public = _public(state, public_key)
    try:
        return auditchain.verify(partial(auditlog.opened, state), state / auditlog.CHECKPOINTS, public)
    except OSError as exc:
        raise SettingsError(f"the audit file cannot be verified: {exc}") from exc


def _public(state: Path, given: str) -> bytes:
    try:
        return bytes.fromhex(given) if given else auditchain.Key.read(state / auditlog.KEY).public
    except (OSError, ValueError) as exc:
        raise SettingsError(f"the audit file cannot be verified: {exc}") from exc


@app.command()
def export(
    format: Annotated[str, typer.Option("--format", help="jsonl, cef or otlp.")] = "jsonl", since: Since = ""
) -> None:
    """Everything recorded, to standard output, for a collector."""
    if format not in FORMATS:
        raise SettingsError(f"{format} is no format; choose {', '.join(FORMATS)}")
    begin = begin_of(since)
    records = auditlog.records(settings().state_dir)
    for line in FORMATS[format](record for record in records if record["at"] >= begin):
        typer.echo(line)


def begin_of(since: str) -> float:
    """The moment from which on something is younger than a span of time.

    Raises:
        SettingsError: it is none.
    """
    if not since:
        return 0.0
    found = re.fullmatch(r"([1-9][0-9]{0,5})([smhdw])", since)
    if found is None:
        raise SettingsError(f"{since} is no span of time; write it as 30m, 12h or 7d")
    return time.time() - int(found[1]) * _UNITS[found[2]]


def _print(records: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(records)
        return
    for record in records:
        out.print(Text(shown(_line(record))))
    if not records:
        out.print("nothing was recorded")


def _line(record: Mapping[str, Any]) -> str:
    at = datetime.fromtimestamp(record["at"], UTC).strftime("%Y-%m-%d %H:%M:%S")
    what = " ".join(part for part in (record["method"], record["server"], record["item"] or record["name"]) if part)
    who = record["principal"] or "-"
    return f"{at}  {record['call']}  {record['outcome']:<14}  {record['ms']:8.1f} ms  {who}  {what}  {record['detail']}"
