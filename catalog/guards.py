"""What an entry says about guards on content: how each acts on its server's arguments and results.

Does not know what the guards look for."""

from typing import Annotated, Literal

from pydantic import Field

from catalog.parts import Part, WholeNumber

Mode = Literal["off", "warn", "tag", "redact", "block"]


class GuardedSide(Part):
    """How each guard acts on one side; one that is not named acts as the gateway's default does."""

    secrets: Mode | None = None
    personal: Mode | None = None
    hidden: Mode | None = None
    escapes: Mode | None = None


class GuardedResults(GuardedSide):
    """As for arguments, and for what only results have."""

    markup: Mode | None = None
    size: Mode | None = None
    max_bytes: Annotated[WholeNumber, Field(ge=1024, le=268_435_456)] | None = None
    """Of one result, where size is not off."""
    max_items: Annotated[WholeNumber, Field(ge=1, le=1_000_000)] | None = None


class Guarding(Part):
    """The guards of one server."""

    arguments: GuardedSide = GuardedSide()
    results: GuardedResults = GuardedResults()
