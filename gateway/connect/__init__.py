"""Connecting agent clients: the entry for this gateway in each client's own configuration file.

Knows files and formats of clients, and nothing of the gateway's inside."""

from gateway.connect.clients import CLIENTS, Client, Place, Platform, Scope, find_client, this_platform
from gateway.connect.configuration import Change, Configuration
from gateway.connect.entries import Target
from gateway.connect.jsonc import DocumentError

__all__ = [
    "CLIENTS",
    "Change",
    "Client",
    "Configuration",
    "DocumentError",
    "Place",
    "Platform",
    "Scope",
    "Target",
    "find_client",
    "this_platform",
]
