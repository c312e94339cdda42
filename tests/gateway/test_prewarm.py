"""Which servers start with the gateway: a rule over the record of past runs."""

from pathlib import Path

import pytest

from catalog import Entry
from gateway.prewarm import MOST, UseRecord
from tests.gateway.running import running
from tests.servers import LOCAL, entry, until

ENTRIES = [entry(id) for id in ("a", "b", "c")]


def runs(path: Path, *used: str) -> None:
    """Runs of a gateway, each given by the servers called in it."""
    for one in used:
        record = UseRecord(path)
        for id in one.split():
            record.note(id)


def wanted(path: Path, entries: list[Entry] | None = None) -> list[str]:
    return UseRecord(path).wanted(entries or ENTRIES)


def test_a_server_called_in_three_of_the_last_five_runs_is_wanted_the_likeliest_first(tmp_path: Path) -> None:
    path = tmp_path / "use.json"
    assert wanted(path) == []
    runs(path, "b a", "a", "b")
    assert wanted(path) == []
    runs(path, "b", "a b")
    assert wanted(path) == ["b", "a"]
    runs(path, "c")  # the first is forgotten
    assert wanted(path) == ["b"]
    assert wanted(path, [entry("other")]) == []


def test_runs_in_which_nothing_was_called_do_not_count(tmp_path: Path) -> None:
    path = tmp_path / "use.json"
    runs(path, "a", "", "", "", "a", "", "a")
    assert wanted(path) == ["a"]


def test_an_entry_that_asks_for_it_comes_first_and_learnt_ones_are_few(tmp_path: Path) -> None:
    path = tmp_path / "use.json"
    many = [f"s{number}" for number in range(MOST + 4)]
    runs(path, *[" ".join(many)] * 3)
    asking = entry("z").model_copy(update={"prewarm": True})
    assert wanted(path, [*map(entry, many), asking]) == ["z", *sorted(many)[:MOST]]


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"[[1]]", b"null"])
def test_a_damaged_record_is_learnt_anew(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "use.json"
    path.write_bytes(damage)
    assert wanted(path) == []
    runs(path, "a", "a", "a")
    assert wanted(path) == ["a"]


def test_a_record_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    runs(tmp_path / "no folder" / "use.json", "a")


@pytest.mark.anyio
async def test_the_gateway_starts_what_is_wanted_and_nothing_else(tmp_path: Path) -> None:
    asking = {"package": LOCAL, "command": ["friendly"], "prewarm": True}
    async with running(tmp_path, {"asking": asking, "often": ["friendly"], "never": ["friendly"]}) as place:
        gateway = place.gateway
        record = UseRecord(gateway.settings.state_dir / "use.json")
        assert record.wanted(gateway.catalog.entries.values()) == ["asking"]
        gateway.prewarm()
        await until(lambda: gateway.pool.servers["asking"].state == "running", "it runs")
        assert [server.state for server in gateway.pool.servers.values()] == ["running", "idle", "idle"]
        await gateway.pool.connection("often")
        assert UseRecord(gateway.settings.state_dir / "use.json")._past == [["often"]]
