"""Reading what others wrote: catalogues, profiles, registry entries and client configurations become entries.

Does not know the gateway, opens no file and asks no registry: text in, entries and notes out. Nothing is lost in
silence: what could not be carried over is in the notes.
"""

from catalog.imports.document import Ecosystem, Imported, NoPackages, Note, Packages, Unreadable
from catalog.imports.reader import FORMATS, MAX_BYTES, import_text

__all__ = [
    "FORMATS",
    "MAX_BYTES",
    "Ecosystem",
    "Imported",
    "NoPackages",
    "Note",
    "Packages",
    "Unreadable",
    "import_text",
]
