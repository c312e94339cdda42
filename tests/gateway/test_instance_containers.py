"""Two instances of one entry in real containers: each has settings, a secret and data of its own, nothing else."""

import json
from pathlib import Path

import pytest

from gateway.secrets import variable
from tests.gateway.running import running
from tests.gateway.sandboxes import PROBE, base_image, docker_url, engine

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

LOOK = "import os; result = [os.environ.get('LEVEL'), os.environ.get('KEY', '')[::-1], sorted(os.listdir('/data'))]"
KEYS = {"probe.key": "canary-of-the-entry-0123456789", "work/probe": "canary-of-work-9876543210"}


async def test_each_instance_has_its_own_settings_secret_and_data(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine().close()
    for name, value in KEYS.items():
        monkeypatch.setenv(variable(name), value)
    server = {
        "image": await base_image(cache_dir),
        "args": ["python3", "-c", PROBE.read_text()],
        "config": [{"name": "level", "type": "integer", "env": "LEVEL"}],
        "secrets": [{"name": "probe.key", "env": "KEY"}],
        "volumes": [{"name": "data", "target": "/data"}],
        "limits": {"start_timeout_s": 120.0, "call_timeout_s": 60.0},
    }
    work = {"server": "probe", "settings": {"level": 3}, "secrets": {"probe.key": "work/probe"}}
    profile = {"servers": ["probe", "work"], "details": {"work": work}}
    changes = {"runtime": "docker", "cache_dir": cache_dir, "docker_host": docker_url()}
    async with running(tmp_path, {"probe": server}, {"all": profile}, **changes) as place:
        session = await place.session()

        async def run(name: str, code: str) -> object:
            return json.loads(await session.call(f"{name}__run", {"code": code}))

        for name in ("probe", "work"):
            await run(name, f"open('/data/{name}', 'w').close()")
        assert await run("probe", LOOK) == [None, KEYS["probe.key"][::-1], ["probe"]]
        assert await run("work", LOOK) == ["3", KEYS["work/probe"][::-1], ["work"]]
        said = await session.call("work__run", {"code": "import os; result = os.environ['KEY']"})
        assert "[hidden secret: work/probe]" in said
        folders = [place.gateway.settings.state_dir / "volumes" / id for id in place.gateway.profile.names]
        assert [[file.name for file in (folder / "data").iterdir()] for folder in folders] == [["probe"], ["work"]]
