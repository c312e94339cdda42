"""What the check has seen of each server, and the table people read: docs/servers.json and docs/servers.md.

Knows how a result is written down; not how it came about."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

DESCRIPTION_CHARS: Final = 300
"""How much of a tool's own description is kept; its digest is over all of it."""

HEAD: Final = """\
# Servers that were started

Written by `make catalog-check`: every entry of the catalogue with a package is built into an image of its own, started
in a container without network, and asked for its tools. Secrets and settings that an entry requires are made up for
the check and named in the table, so what is shown is that the server starts and what it offers, not that its tools
reach their service. `servers.json` beside this file has each tool's name, the beginning of its description, its
annotations, and the SHA-256 of its canonical input schema and of the whole tool.
"""


@dataclass(frozen=True)
class Tool:
    """One tool as its server described it."""

    name: str
    description: str
    schema_sha256: str
    sha256: str
    """Over the whole definition, keys in order."""
    annotations: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Result:
    """One trial of one entry at one package version."""

    id: str
    package: str
    version: str
    date: str
    reason: str = ""
    """Why it failed; empty if it did not."""
    revision: str = ""
    server: str = ""
    """Name and version the server gives itself."""
    made_up: tuple[str, ...] = ()
    tools: tuple[Tool, ...] = ()


def canonical(value: object) -> bytes:
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "surrogatepass")


def tool(definition: Mapping[str, Any]) -> Tool:
    described = " ".join(str(definition.get("description", "")).split())
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in described)
    return Tool(
        name=str(definition["name"]),
        description=shown[:DESCRIPTION_CHARS],
        schema_sha256=hashlib.sha256(canonical(definition.get("inputSchema"))).hexdigest(),
        sha256=hashlib.sha256(canonical(definition)).hexdigest(),
        annotations=definition.get("annotations") or {},
    )


def read(path: Path) -> dict[str, Result]:
    """The results of earlier runs, by entry."""
    if not path.exists():
        return {}
    return {
        row["id"]: Result(
            **{**row, "made_up": tuple(row["made_up"]), "tools": tuple(Tool(**found) for found in row["tools"])}
        )
        for row in json.loads(path.read_text())["servers"]
    }


def write(path: Path, results: Mapping[str, Result]) -> None:
    """One server's head and each of its tools on a line of its own, so that differences can be read."""
    servers = []
    for result in sorted(results.values(), key=lambda result: result.id.casefold()):
        row = asdict(result)
        tools = ",\n   ".join(json.dumps(found, ensure_ascii=False) for found in row.pop("tools"))
        head = json.dumps(row, ensure_ascii=False)[:-1]
        servers.append(f'{head}, "tools": [\n   {tools}]}}' if tools else f'{head}, "tools": []}}')
    path.write_text('{"servers": [\n' + ",\n".join(servers) + "\n]}\n")


def table(results: Mapping[str, Result]) -> str:
    rows = sorted(results.values(), key=lambda result: result.id.casefold())
    good = [result for result in rows if not result.reason]
    lines = [
        HEAD,
        f"{len(good)} of {len(rows)} servers started, with {sum(len(result.tools) for result in good)} tools.",
        "",
        "| entry | package | version | tools | revision | date | made up for the check |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.id} | {row.package} | {row.version} | {len(row.tools)} | {row.revision} | {row.date} "
        f"| {', '.join(row.made_up)} |"
        for row in good
    ]
    lines += ["", "## Not started", ""]
    failed = [row for row in rows if row.reason]
    if not failed:
        lines.append("None.")
    else:
        lines += ["| entry | package | version | date | reason |", "|---|---|---|---|---|"]
        lines += [
            f"| {row.id} | {row.package} | {row.version} | {row.date} | {row.reason.replace('|', '/')} |"
            for row in failed
        ]
    return "\n".join(lines) + "\n"
