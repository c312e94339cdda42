"""A profile: a named set of servers that a client gets together.

Does not know what the servers are: that its ids exist is checked where both are at hand.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Self

from pydantic import AfterValidator, Field, PlainSerializer, Strict, StringConstraints, model_validator

from catalog.parts import Id, Line, Part, ToolName, duplicates, refuse


def _freeze(value: Mapping[str, tuple[str, ...]]) -> Mapping[str, tuple[str, ...]]:
    return MappingProxyType(dict(value))


Selection = Annotated[
    Mapping[Id, tuple[ToolName, ...]],
    AfterValidator(_freeze),
    PlainSerializer(dict, return_type=dict[str, tuple[str, ...]]),
]


class Profile(Part):
    """A named set of servers, optionally with only some of their tools."""

    name: Id
    title: Annotated[Line, StringConstraints(max_length=80)]
    servers: Annotated[tuple[Id, ...], Field(min_length=1, max_length=500)]
    plain_names: Annotated[bool, Strict()] = False
    """Whether tools keep their own names, without the server's before them; for one server only."""
    tools: Selection = Field(default_factory=lambda: _freeze({}))
    """Server to allowed tool names. A server that is absent here has all its tools, an empty list none."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        messages = []
        if twice := duplicates(self.servers):
            messages.append(f"the server {', '.join(twice)} is listed twice; remove one of them")
        if self.plain_names and len(self.servers) != 1:
            messages.append("plain_names is only for a profile of one server, since names of several could collide")
        if strangers := [server for server in self.tools if server not in self.servers]:
            messages.append(f"selects tools of {', '.join(strangers)}, which is not among its servers; add or remove")
        for server, tools in self.tools.items():
            if twice := duplicates(tools):
                messages.append(f"the tool {', '.join(twice)} of {server} is listed twice; remove one of them")
        refuse(messages)
        return self

    def __hash__(self) -> int:
        return hash((self.name, self.servers, self.plain_names))
