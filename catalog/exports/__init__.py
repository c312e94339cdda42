"""Writing entries for others: Docker's catalogue, the MCP registry's server.json, and clients that start servers.

Does not know files. What a foreign format cannot say is in the notes of the export.
"""

from catalog.exports.clients import export_clients
from catalog.exports.docker import export_docker, export_docker_profile
from catalog.exports.registry import export_registry

__all__ = ["export_clients", "export_docker", "export_docker_profile", "export_registry"]
