"""Which tools fit a task, among those of several servers."""

import json
from typing import Any

import pytest

from engine.narrow import compact, narrow
from tests.engine.many_tools import TOOLS

TASKS = [
    ("What time is it in Tokyo right now?", "time__get_current_time"),
    ("Convert 14:30 in New York to London time", "time__convert_time"),
    ("List the files in /data", "filesystem__list_directory"),
    ("Show me what is in the folder /data/reports", "filesystem__list_directory"),
    ("Add 17 and 25", "everything__get-sum"),
    ("What is the sum of 3.5 and 8?", "everything__get-sum"),
    ("Write 'hello' into /data/hello.txt", "filesystem__write_file"),
    ("Read /data/notes.txt", "filesystem__read_text_file"),
    ("Create the directory /data/new", "filesystem__create_directory"),
    ("Rename /data/a.txt to /data/b.txt", "filesystem__move_file"),
    ("Show the git status of /data/repo", "git__git_status"),
    ("Show the last 3 commits of /data/repo", "git__git_log"),
    ("What tables are in the database?", "SQLite__list_tables"),
    ("Select all rows from the table users", "SQLite__read_query"),
    ('Echo the message "good morning"', "everything__echo"),
    ("Remember that Alice works at Acme", "memory__create_entities"),
    ("Search your memory for Alice", "memory__search_nodes"),
]


@pytest.mark.parametrize(("task", "tool"), TASKS)
def test_the_right_tool_is_among_the_six_offered(task: str, tool: str) -> None:
    offered = [kept["function"]["name"] for kept in narrow(task, TOOLS)]
    assert len(offered) == 6
    assert tool in offered


def test_few_tools_are_all_kept_in_their_order() -> None:
    assert narrow("anything", TOOLS[:3]) == TOOLS[:3]


def test_task_without_a_known_word_gets_tools_of_different_servers() -> None:
    offered = [tool["function"]["name"].partition("__")[0] for tool in narrow("¿Qué?", TOOLS)]
    assert len(set(offered)) == len(offered) == 6


@pytest.mark.parametrize("task", ["", "x" * 100_000, "\0\ufdd0", "🦜" * 1_000, "' " * 5_000])
def test_odd_tasks_do_no_harm(task: str) -> None:
    assert len(narrow(task, TOOLS)) == 6


@pytest.mark.parametrize("tool", [{"name": "f"}, {"function": {"name": "f", "parameters": {"properties": []}}}])
def test_odd_tools_do_no_harm(tool: dict[str, Any]) -> None:
    assert len(narrow("task", [*TOOLS, tool])) == 6
    assert compact(tool)["function"]["name"] == "f"


def test_compact_tool_keeps_what_a_call_needs() -> None:
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Arguments",
        "type": "object",
        "properties": {
            "title": {"type": "string", "title": "Title", "description": "First. " + "x" * 500},
            "since": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None},
        },
        "required": ["title"],
        "additionalProperties": False,
    }
    tool = {"function": {"name": "f", "description": "Does it. " + "Explained at length. " * 50, "parameters": schema}}
    small = compact(tool)["function"]
    assert small["parameters"] == {
        "type": "object",
        "properties": {"title": {"type": "string", "description": "First."}, "since": {"type": "string"}},
        "required": ["title"],
    }
    assert small["description"].startswith("Does it. Explained at length.")
    assert len(json.dumps(small)) < 500
