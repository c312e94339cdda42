"""`lockgate tools`: list and call what a profile offers, through the door like any client.

Knows no server."""

from __future__ import annotations

import json
import sys
from typing import Annotated, Any

import typer
from rich.table import Table

from gateway.client import gateway_client
from gateway.commands.running import AsJson, ProfileOption, counted, first_line, out, print_json, run, settings, shown

app = typer.Typer(no_args_is_help=True)


@app.command("list")
def list_tools(as_json: AsJson = False, profile: ProfileOption = None) -> None:
    """List the tools this caller may see."""

    async def work() -> list[dict[str, Any]]:
        async with gateway_client(settings(), profile) as client:
            return await client.list_tools()

    tools = run(work())
    if as_json:
        print_json(tools)
        return
    table = Table("tool", "description", box=None, pad_edge=False)
    for tool in tools:
        table.add_row(shown(tool["name"]), first_line(str(tool.get("description") or ""), 100))
    out.print(table)
    out.print(counted(len(tools), "tool"))


@app.command("call")
def call_tool(
    name: Annotated[str, typer.Argument(help="Qualified tool name, as `lockgate tools list` shows it.")],
    arguments: Annotated[str, typer.Argument(help="A JSON object.")] = "{}",
    as_json: AsJson = False,
    profile: ProfileOption = None,
) -> None:
    """Call one tool and print its result; exit code 1 if the tool reports an error."""
    try:
        parsed = json.loads(arguments)
    except ValueError as exc:
        raise typer.BadParameter(f"arguments are not JSON: {exc}") from exc
    if not isinstance(parsed, dict):
        raise typer.BadParameter('arguments must be a JSON object, like \'{"timezone": "Asia/Tokyo"}\'')

    async def work() -> dict[str, Any]:
        async with gateway_client(settings(), profile) as client:
            return await client.call_tool(name, parsed)

    result = run(work())
    if as_json:
        print_json(result)
    else:
        for block in result.get("content", []):
            text = block["text"] if block.get("type") == "text" else json.dumps(block)[:2000]
            typer.echo(shown(text) if sys.stdout.isatty() else text)
    if result.get("isError"):
        raise typer.Exit(1)
