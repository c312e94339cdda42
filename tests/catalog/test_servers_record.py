"""What is on record of servers that were started: it fits the shipped catalog, and the table says the same."""

import json
from pathlib import Path

import pytest

from catalog import find_shipped_catalog, load_catalog
from tests.catalog_check import record
from tests.catalog_check.__main__ import DOCS, FAILING
from tests.catalog_check.record import Result

AT_LEAST = 45
"""Servers that were started in a container."""


@pytest.fixture(scope="module")
def results() -> dict[str, Result]:
    return record.read(DOCS / "servers.json")


def test_every_package_of_the_catalog_was_started_at_this_version_with_these_tools(results: dict[str, Result]) -> None:
    packaged = {id: entry for id, entry in load_catalog(find_shipped_catalog()).entries.items() if entry.package}
    assert len(packaged) >= AT_LEAST
    for id, entry in packaged.items():
        assert entry.package is not None
        result = results[id]
        assert result.reason == "", id
        assert result.package == f"{entry.package.ecosystem}: {entry.package.name}", id
        assert result.version == entry.package.version, id
        assert {tool.name for tool in result.tools} == set(entry.tools), id


def test_every_package_that_failed_is_on_record_with_its_reason(results: dict[str, Result]) -> None:
    failing = load_catalog(FAILING).entries
    assert {id for id, result in results.items() if result.reason} == set(failing)
    for id, entry in failing.items():
        assert entry.package is not None
        assert results[id].version == entry.package.version


def test_table_is_the_one_the_record_makes(results: dict[str, Result]) -> None:
    assert (DOCS / "servers.md").read_text() == record.table(results), "run: make catalog-check"


def test_record_is_read_back_as_written(tmp_path: Path, results: dict[str, Result]) -> None:
    record.write(tmp_path / "servers.json", results)
    assert record.read(tmp_path / "servers.json") == results
    assert (tmp_path / "servers.json").read_text() == (DOCS / "servers.json").read_text()


def test_tool_keeps_what_tells_changes_and_no_control_characters() -> None:
    definition = {
        "name": "a",
        "description": "Line one.\n  Line\x1b[31m two. " + "x" * 500,
        "inputSchema": {"b": 1, "a": 2},
    }
    tool = record.tool(definition)
    assert tool.description.startswith("Line one. Line\N{REPLACEMENT CHARACTER}[31m two. ")
    assert len(tool.description) == record.DESCRIPTION_CHARS
    again = json.loads(json.dumps(definition, sort_keys=True))
    assert record.tool(again) == tool
    assert record.tool({**definition, "annotations": {"readOnlyHint": True}}).sha256 != tool.sha256
    assert record.tool({**definition, "inputSchema": {"a": 2, "b": 2}}).schema_sha256 != tool.schema_sha256
