"""AGENTS.md tells newcomers where things are; what it names must be there.

Knows nothing of the code."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_path_named_in_agents_md_exists() -> None:
    text = (ROOT / "AGENTS.md").read_text()
    named = re.findall(r"`((?:[\w.-]+/)+[\w.-]*|[\w-]+\.(?:md|yaml|toml))`", text)
    assert len(named) > 20
    missing = [path for path in named if not (ROOT / path).exists() and not path.startswith(".venv/")]
    assert not missing


def test_agents_md_stays_short() -> None:
    assert len((ROOT / "AGENTS.md").read_text().splitlines()) < 80
