"""The command line: `lockgate NOUN VERB`, each command with `--json` and an exit code that means something.

Knows arguments and output; the work is done by the module each command names. Exit codes: 0 done, 1 failed,
2 wrong usage or settings, 130 interrupted."""

from __future__ import annotations

import sys
from typing import Final

import typer

from gateway import __version__
from gateway.commands.nouns import Noun, Verb, group_of
from gateway.memory import keep_to_itself

COMMANDS: Final[dict[str, Noun | Verb]] = {
    "serve": Verb("serve.serve", "Run the gateway until Ctrl-C."),
    "stdio": Verb("stdio.stdio", "Serve MCP on stdin and stdout."),
    "check": Verb("check.check", "Check settings, catalogue, engine, model and, with --start, every server."),
    "profile": Noun(
        "profile_changes",
        "See, make and change profiles, and choose the one at /mcp.",
        {"push": "artifact.push_profile", "pull": "artifact.pull_profile"},
    ),
    "tools": Noun("tools", "List and call the tools of a profile."),
    "server": Noun("server", "See and control the servers behind the gateway."),
    "key": Noun("key", "API keys for programs that call the gateway."),
    "secret": Noun("secret", "Keep secrets in the vault, and look after its key."),
    "user": Noun("user", "Accounts of people who sign in here."),
    "oauth": Noun("oauth", "Sign in at the providers of remote servers."),
    "image": Noun("image", "Build, pull, verify, list and prune container images."),
    "model": Noun("model_run", "Fetch, keep, run and measure local models."),
    "agent": Noun("agent", "Let the local model work with the tools."),
    "client": Noun("client", "Connect agent clients such as Claude, Cursor and VS Code."),
    "audit": Noun("audit", "See, search, verify and export what was recorded."),
    "approvals": Noun("approvals", "See, approve and refuse calls that wait for a person."),
    "policy": Noun("policy", "See, check, compare and explain policies."),
    "catalog": Noun(
        "catalog",
        "Search, show, check and compare the catalogue.",
        {
            "search": "finding.search",
            "import": "exchange.import_",
            "review": "review.review",
            "export": "exchange.export",
            "rules": "rules.rules",
            "push": "artifact.push_catalog",
            "pull": "artifact.pull_catalog",
        },
    ),
}

app = typer.Typer(
    name="lockgate",
    cls=group_of(COMMANDS),
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)


@app.callback()
def lockgate() -> None:
    """An MCP gateway with a language model built in."""


@app.command("version")
def version() -> None:
    """Print the version."""
    typer.echo(__version__)


def main() -> None:
    """The `lockgate` command."""
    keep_to_itself()
    try:
        app()
    except BaseExceptionGroup as group:
        typer.echo(f"lockgate: {_printable(_first(group))}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as exc:
        if (code := _exit_code(exc)) is None:
            raise
        typer.echo(f"lockgate: {_printable(exc)}", err=True)
        sys.exit(code)


def _exit_code(exc: Exception) -> int | None:
    """Of an error that is meant for the user; None for one that nobody foresaw."""
    from catalog import CatalogError
    from engine import EngineError
    from gateway import errors
    from gateway.connect import DocumentError

    if isinstance(exc, errors.SettingsError | CatalogError):
        return 2
    return 1 if isinstance(exc, errors.GatewayError | EngineError | DocumentError) else None


def _printable(exc: BaseException) -> str:
    from gateway.commands.running import shown

    return shown(str(exc))


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
