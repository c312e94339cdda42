"""Catalog files for gateways under test: shipped entries, changed ones, and small servers in an image that is there.

Knows the catalog's file format; nothing of running gateways.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from catalog import load_catalog
from gateway.images.recipes import server_recipe
from tests.e2e.gateways import ROOT

SHIPPED = ROOT / "catalog.yaml"

SMALL = """
import json, sys, time
ANSWERS = {
    "initialize": {"protocolVersion": "2025-11-25", "capabilities": {"tools": {}},
                   "serverInfo": {"name": "small", "version": "1"}},
    "tools/list": {"tools": [{"name": "hello", "inputSchema": {"type": "object"}}]},
    "tools/call": {"content": [{"type": "text", "text": "hello"}]},
}
for line in sys.stdin:
    message = json.loads(line)
    if "id" in message:
        answer = {"error": {"code": -32601, "message": "Method not found"}}
        if message["method"] in ANSWERS:
            answer = {"result": ANSWERS[message["method"]]}
        print(json.dumps({"jsonrpc": "2.0", "id": message["id"], **answer}), flush=True)
"""
"""A server with one tool; it ends when its stdin does."""
STUBBORN = SMALL + "while True:\n    time.sleep(60)\n"
"""The same, but it goes on when its stdin ends."""


def shipped(id: str, **changes: Any) -> dict[str, Any]:
    """An entry of the shipped catalog as it stands in the file, with changes; None takes a key away."""
    entries = yaml.safe_load(SHIPPED.read_text())["servers"]
    return {key: value for key, value in {**entries[id], **changes}.items() if value is not None}


def in_image_of(id: str, *argv: str, **changes: Any) -> dict[str, Any]:
    """An entry that runs something else in the local image of a shipped one: nothing has to be built or pulled."""
    entry = load_catalog(SHIPPED).entry(id)
    assert entry.package is not None
    image = server_recipe(entry, entry.package).tag
    return {"title": "Small", "description": "For tests.", "image": image, "args": list(argv), **changes}


def write(path: Path, servers: Mapping[str, Mapping[str, Any]]) -> Path:
    """A catalog with these servers, all of them in the profile `starter`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    profile = {"title": "For tests", "servers": list(servers)}
    path.write_text(json.dumps({"version": 1, "servers": servers, "profiles": {"starter": profile}}))  # JSON is YAML
    return path
