"""The command line: `lockgate NOUN VERB`, each command with `--json` and an exit code that means something.

Knows arguments and output; the work is done by the module each command names. Exit codes: 0 done, 1 failed,
2 wrong usage or settings, 130 interrupted."""

from __future__ import annotations

import sys

import typer

from catalog import CatalogError
from engine import EngineError
from gateway import __version__, errors
from gateway.commands import (
    agent,
    approvals,
    artifact,
    audit,
    catalog,
    check,
    client,
    exchange,
    finding,
    image,
    key,
    model_run,
    oauth,
    policy,
    profile_changes,
    review,
    rules,
    secret,
    serve,
    server,
    stdio,
    tools,
    user,
)
from gateway.commands.running import shown
from gateway.connect import DocumentError
from gateway.memory import keep_to_itself

app = typer.Typer(
    name="lockgate",
    help="An MCP gateway with a language model built in.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
app.command("serve")(serve.serve)
app.command("stdio")(stdio.stdio)
app.command("check")(check.check)
app.add_typer(profile_changes.app, name="profile", help="See, make and change profiles, and choose the one at /mcp.")
app.add_typer(tools.app, name="tools", help="List and call the tools of a profile.")
app.add_typer(server.app, name="server", help="See and control the servers behind the gateway.")
app.add_typer(key.app, name="key", help="API keys for programs that call the gateway.")
app.add_typer(secret.app, name="secret", help="Keep secrets in the vault, and look after its key.")
app.add_typer(user.app, name="user", help="Accounts of people who sign in here.")
app.add_typer(oauth.app, name="oauth", help="Sign in at the providers of remote servers.")
app.add_typer(image.app, name="image", help="Build, pull, verify, list and prune container images.")
app.add_typer(model_run.app, name="model", help="Fetch, keep, run and measure local models.")
app.add_typer(agent.app, name="agent", help="Let the local model work with the tools.")
app.add_typer(client.app, name="client", help="Connect agent clients such as Claude, Cursor and VS Code.")
catalog.app.command("search")(finding.search)
catalog.app.command("import")(exchange.import_)
catalog.app.command("review")(review.review)
catalog.app.command("export")(exchange.export)
catalog.app.command("rules")(rules.rules)
catalog.app.command("push")(artifact.push_catalog)
catalog.app.command("pull")(artifact.pull_catalog)
profile_changes.app.command("push")(artifact.push_profile)
profile_changes.app.command("pull")(artifact.pull_profile)
app.add_typer(audit.app, name="audit", help="See, search, verify and export what was recorded.")
app.add_typer(approvals.app, name="approvals", help="See, approve and refuse calls that wait for a person.")
app.add_typer(policy.app, name="policy", help="See, check, compare and explain policies.")
app.add_typer(catalog.app, name="catalog", help="Search, show, check and compare the catalogue.")


@app.command("version")
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """The `lockgate` command."""
    keep_to_itself()
    try:
        app()
    except (errors.GatewayError, CatalogError, EngineError, DocumentError) as exc:
        usage = isinstance(exc, errors.SettingsError | CatalogError)
        typer.echo(f"lockgate: {shown(str(exc))}", err=True)
        sys.exit(2 if usage else 1)
    except BaseExceptionGroup as group:
        typer.echo(f"lockgate: {shown(str(_first(group)))}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
