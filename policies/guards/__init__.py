"""Content guards: what is looked for in arguments and results, and what is done with what is found.

Pure: no input, no output, no network. They know JSON values and texts; not whose they are.
"""

from policies.guards.modes import DEFAULTS, GUARDS, Guard, Guards, Mode, Side
from policies.guards.scanner import Scan, Scanner, scanner

__all__ = ["DEFAULTS", "GUARDS", "Guard", "Guards", "Mode", "Scan", "Scanner", "Side", "scanner"]
