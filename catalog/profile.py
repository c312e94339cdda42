"""A profile: a named set of servers that a client gets together, each as this profile wants it.

Does not know what the servers are: what it says of them is checked where both are at hand.
"""

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import Annotated, Any, Self

from pydantic import AfterValidator, ConfigDict, Field, PlainSerializer, Strict, StringConstraints, model_validator

from catalog import reference
from catalog.instance import Secrets, Settings, instance_id
from catalog.parts import Id, Line, Part, ToolName, WholeNumber, distinct, duplicates, form, refuse

MAX_DESCRIPTION = 4000
"""Characters; a model reads it with every request."""


def _freeze(value: Mapping[str, Any]) -> Mapping[str, Any]:
    return MappingProxyType(dict(value))


_Frozen = (AfterValidator(_freeze), PlainSerializer(dict, return_type=dict[str, Any]))
Selection = Annotated[Mapping[Id, tuple[ToolName, ...]], *_Frozen]
NewName = Annotated[str, AfterValidator(reference.check_new_name), form("new-name")]
Names = Annotated[Mapping[ToolName, NewName], Field(max_length=1000), *_Frozen]
Descriptions = Annotated[
    Mapping[ToolName, Annotated[str, StringConstraints(min_length=1, max_length=MAX_DESCRIPTION)]],
    Field(max_length=1000),
    *_Frozen,
]
CallerName = Annotated[str, AfterValidator(reference.check_caller), form("caller")]
CallerNames = Annotated[tuple[CallerName, ...], Field(max_length=1000), AfterValidator(distinct("the name"))]


class Detail(Part):
    """What a profile says of one of its servers beyond naming it."""

    server: Id | None = None
    """The entry that runs under this name; left out, the one that has the name itself."""
    settings: Settings = Field(default_factory=lambda: _freeze({}))
    """Values for what the entry lists in config."""
    secrets: Secrets = Field(default_factory=lambda: _freeze({}))
    """A secret of the entry to the secret that fills it here: "github.token" to "work/github"."""
    rename: Names = Field(default_factory=lambda: _freeze({}))
    """A tool, as its server names it, to the name it has here."""
    descriptions: Descriptions = Field(default_factory=lambda: _freeze({}))
    """A tool to the description it has here, in place of its server's."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if twice := duplicates(self.rename.values()):
            refuse([f"two tools are renamed to {', '.join(twice)}; give each its own name"])
        return self


PLAIN = Detail()
Details = Annotated[Mapping[Id, Detail], *_Frozen]


class Budget(Part):
    """How many of its tools a profile lists; the others are found and called by two tools of the gateway."""

    tools: Annotated[WholeNumber, Field(ge=3, le=10_000)] | None = None
    """Tools in the list, the gateway's own two among them."""
    chars: Annotated[WholeNumber, Field(ge=2000, le=100_000_000)] | None = None
    """Characters of all definitions in the list; a model reads about one token for four of them."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if self.tools is None and self.chars is None:
            refuse(["is a budget without a limit; add tools or chars, or remove it"])
        return self


class Callers(Part):
    """Whom a profile is for: these people and programs, and everybody in these groups."""

    principals: CallerNames = ()
    """Who signs in is a principal; whoever calls from this machine without signing in is "local"."""
    groups: CallerNames = ()


class Profile(Part):
    """A named set of servers, each optionally with only some of its tools, and with settings and secrets of its own."""

    model_config = ConfigDict(serialize_by_alias=True)

    name: Id
    title: Annotated[Line, StringConstraints(max_length=80)]
    servers: Annotated[tuple[Id, ...], Field(min_length=1, max_length=500)]
    """The names of its servers: ids of entries, or names that details give to entries."""
    details: Details = Field(default_factory=lambda: _freeze({}))
    """What is particular about some of the servers here: settings, secrets, names; another name for an entry."""
    plain_names: Annotated[bool, Strict()] = False
    """Whether tools keep their own names, without the server's before them; for one server only."""
    tools: Selection = Field(default_factory=lambda: _freeze({}))
    """Server to allowed tool names. A server that is absent here has all its tools, an empty list none."""
    budget: Budget | None = None
    """How many tools are listed; left out, all are."""
    callers: Annotated[Callers | None, Field(alias="for")] = None
    """Whom it is for; to others it does not exist. Left out, it is for everybody."""
    policy: Id = "open"
    """The set of policies that says who may do what with it; see docs/policy.md."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        refuse([*self._servers_in_order(), *self._tools_in_order()])
        return self

    def _servers_in_order(self) -> Iterator[str]:
        if twice := duplicates(self.servers):
            yield (
                f"the server {', '.join(twice)} is listed twice; remove one of them, or give it another name in details"
            )
        if self.plain_names and len(self.servers) != 1:
            yield "plain_names is only for a profile of one server, since names of several could collide"
        if self.budget is not None and "lockgate" in self.servers:
            yield "has a budget and a server called lockgate, whose name the gateway's own tools have; give it another"
        for name in self.details:
            if name not in self.servers:
                yield f"has details of {name}, which is not among its servers; add or remove"
        if self.callers is not None and not (self.callers.principals or self.callers.groups):
            yield "is for nobody; name principals or groups, or remove for"

    def _tools_in_order(self) -> Iterator[str]:
        if strangers := [server for server in self.tools if server not in self.servers]:
            yield f"selects tools of {', '.join(strangers)}, which is not among its servers; add or remove"
        for server, tools in self.tools.items():
            if twice := duplicates(tools):
                yield f"the tool {', '.join(twice)} of {server} is listed twice; remove one of them"

    def __hash__(self) -> int:
        return hash((self.name, self.servers, self.plain_names))

    # -- what runs ---------------------------------------------------------------------------

    def detail(self, server: str) -> Detail:
        """What is particular about a server here."""
        return self.details.get(server, PLAIN)

    def entry_id(self, server: str) -> str:
        """The id of the entry that runs under a name."""
        return self.detail(server).server or server

    @property
    def entries(self) -> list[str]:
        """The ids of its entries, each once."""
        return list(dict.fromkeys(map(self.entry_id, self.servers)))

    @cached_property
    def runs(self) -> Mapping[str, str]:
        """Each name, in order, to the id of what runs under it: the entry's, or an instance's of its own."""
        return MappingProxyType({name: self._id(name) for name in self.servers})

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The reverse."""
        return MappingProxyType({id: name for name, id in self.runs.items()})

    def _id(self, name: str) -> str:
        detail = self.detail(name)
        return instance_id(name, self.entry_id(name), detail.settings, detail.secrets)

    # -- who may see what --------------------------------------------------------------------

    def selects(self, server: str, tool: str) -> bool:
        """Whether a tool of the server that has this name here is among those this profile takes."""
        return server not in self.tools or tool in self.tools[server]

    def admits(self, principal: str, groups: Collection[str]) -> bool:
        """Whether the profile is for this caller."""
        bound = self.callers
        return bound is None or principal in bound.principals or any(group in bound.groups for group in groups)
