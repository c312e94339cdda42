"""`lockgate image` from the outside, with a real registry and engine: what it prints, and its exit code."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.gateway.engines import client, engine_url, tiny_rootfs
from tests.gateway.registries import forget, payload, pem, registry, signed

pytestmark = pytest.mark.docker

LOCKGATE = Path(sys.executable).with_name("lockgate")
STALE = f"lockgate.local/test-stale-{os.getpid()}"


@pytest.fixture
def engine() -> Iterator[docker.APIClient]:
    found = client()
    yield found
    found.close()


def test_pull_verify_list_and_prune_say_what_they_find(engine: docker.APIClient, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    with registry(tmp_path / "registry") as hub:
        parts = {"title": "Box", "description": "A box."}
        catalog = {
            "version": 1,
            "servers": {
                name: {**parts, "image": f"{hub.host}/{path}:1"}
                for name, path in (("good", "acme/good"), ("bad", "acme/bad"), ("free", "plain/free"))
            },
            "profiles": {"all": {"title": "All", "servers": ["good", "bad", "free"]}},
            "publishers": {"acme": {"images": [f"{hub.host}/acme/*"], "keys": [pem(key)]}},
        }
        (tmp_path / "catalog.yaml").write_text(json.dumps(catalog))
        paths = ("acme/good", "acme/bad", "plain/free")
        digests = {path: hub.push(engine, tmp_path, path, marker=path) for path in paths}
        good = digests["acme/good"]
        hub.sign("acme/good", good, signed(key, payload(good, f"{hub.host}/acme/good")))

        def image(*arguments: str, code: int = 0) -> Any:
            environ = {
                **{name: value for name, value in os.environ.items() if not name.startswith("LOCKGATE_")},
                "LOCKGATE_CATALOG": str(tmp_path / "catalog.yaml"),
                "LOCKGATE_STATE_DIR": str(tmp_path / "state"),
                "LOCKGATE_CACHE_DIR": str(tmp_path / "cache"),
                "LOCKGATE_PROFILE": "all",
                "LOCKGATE_DOCKER_HOST": engine_url(),
            }
            argv = [LOCKGATE, "image", *arguments, "--json"]
            done = subprocess.run(argv, capture_output=True, text=True, env=environ, check=False)
            assert done.returncode == code, done.stderr
            return {row["entry"]: row for row in json.loads(done.stdout)}

        try:
            assert {name: row["id"] for name, row in image("list").items()} == {"good": None, "bad": None, "free": None}
            rows = image("verify", code=1)
            assert rows["good"]["signer"].startswith("key ")
            assert "it is not signed, and acme signs its images" in rows["bad"]["error"]
            assert rows["free"]["signer"] is None
            rows = image("pull", code=1)
            assert "it is not signed" in rows["bad"]["error"]
            held = image("list")
            assert [held[name]["origin"] for name in ("good", "bad", "free")] == ["published", None, "published"]
            assert held["good"]["id"] == rows["good"]["id"]
            pinned = json.loads((tmp_path / "catalog.lock").read_text())["images"]
            assert pinned == {f"{hub.host}/{path}:1": digest for path, digest in digests.items()}

            # An image with our label that no entry uses; others on this engine may be of other catalogs.
            changes = ["LABEL lockgate.image=local"]
            files = tiny_rootfs(tmp_path)
            engine.import_image_from_data(files, repository=STALE, tag="1", changes=changes)
            stale = image("prune", "--dry-run")
            assert f"{STALE}:1" in stale
            assert not any(hub.host in tag for tag in stale)
            assert engine.images(name=STALE), "a dry run removed something"
        finally:
            for path in digests:
                forget(engine, f"{hub.host}/{path}")
            forget(engine, STALE)
