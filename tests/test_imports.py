"""Who may import whom: the rule that keeps the rooms apart, read from the sources.

Knows nothing of what the modules do."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.cli import COMMANDS

ROOT = Path(__file__).parent.parent
ROOMS = ("catalog", "policies", "engine", "gateway")
LEAVES = ("catalog", "policies", "engine")
IMPORTERS = {
    "yaml": {"catalog/loader.py", "catalog/yamltext.py"},
    "jinja2": {"engine/template.py"},
    "docker": {"gateway/docker_engine.py", "gateway/images/logins.py"},
    "httptools": {"gateway/wire/http_client.py", "gateway/onewrite.py"},
    "uvicorn": {"gateway/serving.py", "gateway/onewrite.py"},
    "cedarpy": {"policies/cedar.py", "policies/rule.py"},
    "cryptography": {
        "gateway/auditchain.py",
        "gateway/bridge.py",
        "gateway/images/signatures.py",
        "gateway/images/signing.py",
        "gateway/vault/sealing.py",
    },
}
"""The modules that may import a heavy library: one, or one for each use of it."""


def imports(path: Path) -> Iterator[str]:
    """Every module name a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def modules(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found, f"no modules in {room}"
    return found


def room_of(module: str) -> str:
    return module.partition(".")[0]


@pytest.mark.parametrize("leaf", LEAVES)
def test_a_leaf_imports_no_other_room(leaf: str) -> None:
    others = {room for room in ROOMS if room != leaf} | {"tests", "benchmarks"}
    wrong = [f"{path}: {name}" for path in modules(leaf) for name in imports(path) if room_of(name) in others]
    assert not wrong


def test_the_gateway_imports_no_tests() -> None:
    wrong = [
        f"{path}: {name}"
        for path in modules("gateway")
        for name in imports(path)
        if room_of(name) in ("tests", "benchmarks")
    ]
    assert not wrong


@pytest.mark.parametrize("library", sorted(IMPORTERS))
def test_a_heavy_library_has_its_importing_modules_and_no_others(library: str) -> None:
    found = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in modules(room)
        if library in {room_of(name) for name in imports(path)}
    }
    assert found == IMPORTERS[library]


def test_llama_cpp_is_imported_only_where_the_worker_process_runs() -> None:
    found = {
        str(path.relative_to(ROOT))
        for room in ROOMS
        for path in modules(room)
        if "llama_cpp" in {room_of(name) for name in imports(path)}
    }
    assert found
    assert len(found) <= 2
    assert all(path.startswith("engine/") for path in found)


def test_only_the_pool_opens_connections_and_only_the_door_asks_it_to_relay() -> None:
    """Nothing but the door makes a client's call on a server: `Upstream.start` is called there and, in the course of a
    call, where it has tasks relayed; by the upstream and the pool for requests of the gateway's own, and by the command
    line's client on its connection to the gateway."""
    callers = set()
    for path in modules("gateway"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and node.func.attr == "start"
                and ast.unparse(node.func.value) in ("upstream", "self._upstream", "self")
                and node.args
                and len(node.args) >= 2
            ):
                callers.add(str(path.relative_to(ROOT)))
    ways = {"gateway/door.py", "gateway/relayed.py", "gateway/upstream.py", "gateway/listening.py", "gateway/client.py"}
    assert callers == ways


@pytest.mark.parametrize("command", ["tools", "server", "client", "agent"])
def test_a_command_that_asks_the_running_gateway_imports_no_gateway(command: str) -> None:
    program = f"import sys, gateway.cli, gateway.commands.{command}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"sqlalchemy", "docker", "starlette", "uvicorn", "cedarpy", "gateway.gateway"} & set(done.stdout.split())


def test_the_command_line_imports_its_nouns_when_they_are_used() -> None:
    program = "import sys, gateway.cli; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert not {"catalog", "engine", "gateway.client", "msgspec"} & set(done.stdout.split())
    for name, command in COMMANDS.items():
        assert command.load(name).name == name
