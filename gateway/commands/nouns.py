"""Commands that are imported when they are used: `lockgate version` need not wait for the database's library.

Knows where a command is and its line of help; not what it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any, Final, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command, get_group

MODULES: Final = "gateway.commands."


class Noun(NamedTuple):
    """The commands of `module.app` in gateway/commands/; `more` are verbs whose functions live in other modules."""

    module: str
    help: str
    more: Mapping[str, str] = {}

    def load(self, name: str) -> TyperCommand | TyperGroup:
        own: typer.Typer = import_module(MODULES + self.module).app
        app = typer.Typer(name=name, help=self.help, no_args_is_help=True)
        app.registered_callback = own.registered_callback
        app.registered_commands = list(own.registered_commands)
        for verb, place in self.more.items():
            app.command(verb)(_function(place))
        return get_group(app)


class Verb(NamedTuple):
    """A command without a noun: `module.function` in gateway/commands/."""

    place: str
    help: str

    def load(self, name: str) -> TyperCommand | TyperGroup:
        app = typer.Typer(add_completion=False)
        app.command(name)(_function(self.place))
        command: TyperCommand | TyperGroup = get_command(app)  # type: ignore[assignment]  # one of its own two kinds
        return command


class Deferred(TyperCommand):
    """Stands for a command in the list of commands, and becomes it when it is used."""

    def __init__(self, name: str, command: Noun | Verb) -> None:
        super().__init__(name, help=command.help)
        self._command = command

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        return self._command.load(str(self.name)).make_context(info_name, args, parent, **extra)


def group_of(commands: Mapping[str, Noun | Verb]) -> type[TyperGroup]:
    """A kind of group that offers these commands after those that are registered with it."""

    class Group(TyperGroup):
        def __init__(self, **attributes: Any) -> None:
            super().__init__(**attributes)
            for name, command in commands.items():
                self.add_command(Deferred(name, command))

    return Group


def _function(place: str) -> Callable[..., Any]:
    module, name = place.split(".")
    function: Callable[..., Any] = getattr(import_module(MODULES + module), name)
    return function
