"""An image that the engine holds, as the runtimes get to see it.

Knows neither where it came from nor how it was checked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Image:
    """An image that the engine holds.

    origin: a "published" image runs its own entrypoint with the entry's args, a "local" one the entry's
        command.
    """

    reference: str
    origin: Literal["published", "local"]
    id: str
