"""Lockgate's gateway: the only room with sockets, clocks and other people's processes.

Composes the leaves (catalog, policies, engine); nothing imports it back."""

__version__ = "0.1.0"
