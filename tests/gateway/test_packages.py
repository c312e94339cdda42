"""Installing servers from PyPI and npm on this machine, with the real installers.

Does not run servers under the gateway, nor in a sandbox."""

import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from catalog import Package
from gateway.errors import PackageError
from gateway.indexes import PackageIndexes, installer_environment
from gateway.nodejs import NODE_VERSION
from gateway.packages import InstalledPackage, PackageStore, find_uv

TIME = Package(ecosystem="pypi", name="mcp-server-time", version="2026.10.19")
EVERYTHING = Package(ecosystem="npm", name="@modelcontextprotocol/server-everything", version="2026.8.31")
ANSWER_WITHIN_S = 30

pytestmark = pytest.mark.anyio
needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")


def server_info(installed: InstalledPackage, *command: str) -> dict[str, str]:
    """Start the server as the runtime would, and return what it says it is."""
    request = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "initialize",
        "params": {
            "protocolVersion": "2025-11-25",
            "capabilities": {},
            "clientInfo": {"name": "test", "version": "1"},
        },
    }
    path = os.pathsep.join([*map(str, installed.path_dirs), "/usr/bin", "/bin"])  # for `env` in first lines
    program = shutil.which(command[0], path=path)
    assert program is not None
    process = subprocess.Popen(
        [program, *command[1:]],
        env={**installed.env, "PATH": path},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(request) + "\n")
        process.stdin.flush()
        for line in process.stdout:
            message = json.loads(line)
            if message.get("id") == 1:
                process.stdin.close()
                process.wait(ANSWER_WITHIN_S)
                info: dict[str, str] = message["result"]["serverInfo"]
                return info
    raise AssertionError("the server ended without an answer")


def silent(_: str) -> None:
    pass


async def test_a_pypi_server_runs_from_its_own_environment_and_is_installed_once(tmp_path: Path) -> None:
    lines: list[str] = []
    store = PackageStore(tmp_path)
    installed = await store.ensure(TIME, progress=lines.append)
    assert server_info(installed, "mcp-server-time", "--local-timezone", "UTC")["name"] == "mcp-time"
    assert lines[0] == "installing mcp-server-time 2026.10.19 from pypi"

    again: list[str] = []
    assert await PackageStore(tmp_path).ensure(TIME, progress=again.append) == installed
    assert again == []


async def test_pins_get_an_installation_of_their_own(tmp_path: Path) -> None:
    pinned = TIME.model_copy(update={"pins": ("tzlocal<5.4",)})
    store = PackageStore(tmp_path)
    plain, held = [await store.ensure(package, progress=silent) for package in (TIME, pinned)]
    assert plain.root != held.root
    version = subprocess.run(
        [held.path_dirs[0] / "python", "-c", "import importlib.metadata as m; print(m.version('tzlocal'))"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert version.stdout.startswith("5.3")


@pytest.mark.node
@needs_npm
async def test_an_npm_server_runs_from_a_folder_of_its_own(tmp_path: Path) -> None:
    installed = await PackageStore(tmp_path).ensure(EVERYTHING, progress=silent)
    assert server_info(installed, "mcp-server-everything")["name"] == "mcp-servers/everything"


@pytest.mark.parametrize(
    ("package", "advice"),
    [
        pytest.param(TIME.model_copy(update={"version": "1900.1.1"}), "pip reaches its index", id="pypi"),
        pytest.param(
            EVERYTHING.model_copy(update={"version": "1900.1.1"}),
            "npm reaches its registry",
            id="npm",
            marks=[pytest.mark.node, needs_npm],
        ),
    ],
)
async def test_a_version_that_does_not_exist_is_reported_in_the_installers_words(
    package: Package, advice: str, tmp_path: Path
) -> None:
    with pytest.raises(PackageError) as failure:
        await PackageStore(tmp_path).ensure(package, progress=silent)
    message = str(failure.value)
    assert message.startswith(f"{package.name} 1900.1.1")
    assert advice in message
    assert message.count("1900.1.1") > 1  # the installer's own line names it too
    assert list(tmp_path.rglob(".complete")) == []


@pytest.mark.skipif(find_uv() is None, reason="uv is not installed: pip reports no step to cancel in")
async def test_a_cancelled_installation_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    store = PackageStore(tmp_path)
    with anyio.CancelScope() as scope:

        def cancel_midway(line: str) -> None:
            if line.startswith("Resolved"):
                scope.cancel()

        await store.ensure(TIME, progress=cancel_midway)
    assert scope.cancelled_caught
    assert list(tmp_path.rglob("venv"))
    assert list(tmp_path.rglob(".complete")) == []

    lines: list[str] = []
    with anyio.fail_after(120):  # the killed installer has let go of the lock
        installed = await store.ensure(TIME, progress=lines.append)
    assert lines[0].startswith("installing")
    assert server_info(installed, "mcp-server-time")["name"] == "mcp-time"


async def test_two_stores_that_want_the_same_package_install_it_once(tmp_path: Path) -> None:
    lines: list[str] = []
    found: list[InstalledPackage] = []

    async def ensure() -> None:
        found.append(await PackageStore(tmp_path).ensure(TIME, progress=lines.append))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ensure)
        tasks.start_soon(ensure)
    assert found[0] == found[1]
    assert sum(line.startswith("installing") for line in lines) == 1


async def test_an_environment_whose_python_is_gone_is_made_anew(tmp_path: Path) -> None:
    store = PackageStore(tmp_path)
    installed = await store.ensure(TIME, progress=silent)
    python = installed.path_dirs[0] / "python"
    python.unlink()
    python.symlink_to(tmp_path / "no-such-python")
    lines: list[str] = []
    await store.ensure(TIME, progress=lines.append)
    assert lines[0].startswith("installing")
    assert server_info(installed, "mcp-server-time")["name"] == "mcp-time"


@pytest.fixture
def path_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Put a program into a PATH that has nothing else."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))

    def add(name: str, script: str) -> None:
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)

    return add


@pytest.mark.node
@pytest.mark.parametrize("version", ["v18.20.4", None], ids=["too-old", "absent"])
async def test_without_a_node_that_is_new_enough_a_copy_comes_from_pypi(
    version: str | None, path_with: Callable[[str, str], None], tmp_path: Path
) -> None:
    if version:
        path_with("node", f"echo {version}")
        path_with("npm", "exit 1")
    lines: list[str] = []
    installed = await PackageStore(tmp_path).ensure(EVERYTHING, progress=lines.append)
    assert lines[0] == f"installing Node.js {NODE_VERSION} from pypi, for servers from npm"
    assert installed.path_dirs[-1].is_relative_to(tmp_path)
    assert server_info(installed, "mcp-server-everything")["name"] == "mcp-servers/everything"


async def test_where_no_node_can_be_had_the_error_says_what_to_install(
    path_with: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path_with("node", "echo v24.0.0")  # and no npm
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        index = f"http://127.0.0.1:{free.getsockname()[1]}/simple"
        for variable in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX"):
            monkeypatch.setenv(variable, index)
        monkeypatch.setenv("PIP_RETRIES", "0")
        monkeypatch.setenv("UV_HTTP_RETRIES", "0")
        monkeypatch.setenv("UV_CACHE_DIR", str(tmp_path / "empty-cache"))
        with pytest.raises(PackageError, match=r"need Node\.js 20 or later with npm, which is not on PATH"):
            await PackageStore(tmp_path / "cache").ensure(EVERYTHING, progress=silent)


@pytest.mark.skipif(shutil.which("dpkg-query") is None, reason="not a Debian machine")
async def test_a_missing_debian_package_is_named_before_anything_is_installed(tmp_path: Path) -> None:
    package = TIME.model_copy(update={"apt": ("lockgate-no-such-package",)})
    with pytest.raises(PackageError, match="apt-get install lockgate-no-such-package"):
        await PackageStore(tmp_path).ensure(package, progress=silent)
    assert list(tmp_path.iterdir()) == []


def test_an_installer_sees_index_settings_but_no_secrets() -> None:
    environ = {"PATH": "/bin", "PIP_INDEX_URL": "https://x/simple", "HTTPS_PROXY": "http://p", "TOKEN": "s"}
    assert installer_environment(environ) == {name: environ[name] for name in environ if name != "TOKEN"}


def test_folders_of_this_machine_are_not_given_to_a_container() -> None:
    indexes = PackageIndexes(
        pip_index="file:///mirror/simple",
        pip_extra_indexes=("file:///wheels", "https://user:pass@mirror.example/simple"),
        npm_registry="https://mirror.example/npm",
        ca_bundle=Path("/etc/ca.pem"),
    )
    settings = indexes.for_container("/run/ca.pem")
    assert "UV_DEFAULT_INDEX" not in settings
    assert settings["UV_INDEX"] == settings["PIP_EXTRA_INDEX_URL"] == "https://user:pass@mirror.example/simple"
    assert settings["SSL_CERT_FILE"] == settings["NODE_EXTRA_CA_CERTS"] == "/run/ca.pem"
    assert not any("/etc/ca.pem" in value or "file:" in value for value in settings.values())
