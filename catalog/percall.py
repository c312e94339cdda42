"""Tools that are no server: each call runs a container of its own with the arguments of the call.

Does not know how such a container is run.
"""

from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from catalog import reference
from catalog.parts import Argument, Line, Mount, Part, ToolName, TruthValue, duplicates, refuse
from catalog.setting import Setting


class CallTool(Part):
    """One tool, and the container that carries out a call of it."""

    name: ToolName
    description: Line
    image: Annotated[str, AfterValidator(reference.check_image)]
    command: Annotated[tuple[Argument, ...], Field(max_length=256)] = ()
    """What follows the image's own entrypoint, before the arguments of the call."""
    parameters: Annotated[tuple[Setting, ...], Field(max_length=64)] = ()
    """What a caller gives, each with arg: how it stands on the command line."""
    mounts: Annotated[tuple[Mount, ...], Field(max_length=16)] = ()
    """Folders of the host that a call names in a parameter (config)."""
    engine_socket: TruthValue = False
    """Whether it needs the socket of the Docker Engine, which is as much as root on the host."""

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        names = [parameter.name for parameter in self.parameters]
        messages = [f"the parameter {name} of {self.name} is listed twice" for name in duplicates(names)]
        messages += [
            f"the parameter {parameter.name} of {self.name} sets a variable; a call gives arguments only: use arg"
            for parameter in self.parameters
            if parameter.env is not None
        ]
        messages += [
            f"a mount of {self.name} needs config, the parameter that holds the path"
            if mount.config is None
            else f"a mount of {self.name} names the parameter {mount.config}, which there is not"
            for mount in self.mounts
            if mount.config not in names
        ]
        refuse(messages)
        return self
