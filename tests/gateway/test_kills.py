"""A gateway killed at any moment leaves nothing that its successor does not remove."""

import json
import os
import random
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from catalog import find_shipped_catalog, load_catalog
from tests.gateway.engines import client, engine_url, make_tiny_image
from tests.gateway.registries import registry
from tests.servers import write_catalog

CYCLES = 200
WHOLE_S = 1800
ROOT = Path(__file__).parents[2]


@pytest.mark.docker
@pytest.mark.sec("SEC-074")
def test_two_hundred_kills_at_random_moments_leave_nothing(tmp_path: Path, cache_dir: Path) -> None:
    engine, name = client(), f"lockgate.local/test-kills-{secrets.token_hex(4)}"
    seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {seed}")  # shown with a failure
    time = load_catalog(find_shipped_catalog()).entry("time")
    assert time.package is not None
    package = time.package.model_dump(mode="json")
    try:
        make_tiny_image(engine, tmp_path, name)
        with registry(tmp_path / "registry") as far:
            digest = far.push(engine, tmp_path, "kills", marker="to pull")
            pulled = f"{far.host}/kills@{digest}"
            stubborn = {"image": f"{name}:1", "args": ["stay"]}
            servers = {
                "stubborn": stubborn,
                "filtered": {**stubborn, "network": "internet", "hosts": ["example.com:443"]},
                "time": {"package": package, "command": list(time.command)},
                "build": {"package": package, "command": list(time.command)},
                "pull": {"image": pulled},
            }
            order = {
                "state": str(tmp_path / "state"),
                "cache": str(cache_dir),
                "catalog": str(write_catalog(tmp_path / "catalog.yaml", servers)),
                "engine": engine_url(),
                "pulled": pulled,
                "seed": seed,
                "cycles": int(os.environ.get("KILL_CYCLES", CYCLES)),
            }
            done = subprocess.run(
                [sys.executable, "-m", "tests.gateway.killed", json.dumps(order)],
                cwd=ROOT,
                capture_output=True,
                text=True,
                timeout=WHOLE_S,
                check=False,
            )
    finally:
        for image in (*engine.images(name, all=True), *engine.images("lockgate.local/build", all=True)):
            engine.remove_image(image["Id"], force=True)
        engine.close()
    print(done.stdout)
    assert done.returncode == 0, done.stderr[-3000:]
    assert " container" in done.stdout, "the kills left nothing to remove: what was tested?"
