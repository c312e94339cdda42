"""The client programs that tests drive gateways with, and where their libraries are.

Knows what .ci/parts installs; not what the programs say."""

import shutil
import sys
from collections.abc import Mapping
from functools import cache

from tests.conformance.suite import Suite
from tests.conformance.suite import cache_dir as suite_dir
from tests.e2e.conversation import Client, program
from tests.e2e.gateways import cache_dir, missing

Mode = str | Mapping[str, str]


def python_2(transport: str, mode: Mode) -> Client:
    return Client((sys.executable, program("python_2.py")), transport, mode)


def python_1(transport: str, mode: Mode) -> Client:
    python = cache_dir() / "clients" / "mcp-1.30" / "bin" / "python"
    if not python.exists():
        missing(f"the Python SDK 1.30 is not at {python}")
    return Client((str(python), program("python_1.py")), transport, mode)


def typescript(transport: str, mode: Mode) -> Client:
    node, installed = shutil.which("node"), cache_dir() / "clients" / "ts"
    if node is None or not (installed / "node_modules" / "@modelcontextprotocol" / "client").exists():
        missing(f"the TypeScript SDK is not in {installed}, or there is no Node.js")
    return Client((node, program("typescript.mjs"), str(installed)), transport, mode)


@cache
def inspector() -> tuple[str, ...]:
    """The command line of the inspector, which needs Node.js 22: the conformance suite brings it."""
    installed = cache_dir() / "clients" / "inspector" / "node_modules" / "@modelcontextprotocol" / "inspector"
    if shutil.which("npm") is None or not installed.exists():
        missing(f"the inspector is not at {installed}, or there is no npm")
    suite = Suite(suite_dir())
    suite.ensure()
    return (str(suite.node), str(installed / "clients/cli/build/index.js"))
