"""Agents defined in files: what is accepted, and what is said about the rest."""

from pathlib import Path

import pytest

from engine.agent import Budget
from engine.definition import AgentDefinition, definitions, find_definition, load_definition
from engine.errors import BadDefinition

WHOLE = """
description: Watches the repository
prompt: You look after a git repository.
model: qwen2.5-coder:0.5b
profile: starter
tools: ["git__*", time__get_current_time]
budget: {steps: 4, seconds: 60}
output: {type: object, properties: {n: {type: integer}}}
"""


def write(folder: Path, text: str, name: str = "watcher.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_every_member_is_read(tmp_path: Path) -> None:
    agent = load_definition(write(tmp_path, WHOLE))
    assert agent.prompt == "You look after a git repository."
    assert (agent.model, agent.profile) == ("qwen2.5-coder:0.5b", "starter")
    assert agent.budget.budget() == Budget(steps=4, seconds=60)
    assert agent.output == {"type": "object", "properties": {"n": {"type": "integer"}}}
    assert [agent.selects(tool) for tool in ("git__log", "time__get_current_time", "memory__read_graph")] == [
        True,
        True,
        False,
    ]


def test_what_is_left_out_is_as_for_any_run(tmp_path: Path) -> None:
    agent = load_definition(write(tmp_path, "{}"))
    assert agent == AgentDefinition()
    assert agent.budget.budget() == Budget()
    assert agent.selects("anything__at_all")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("promt: x", "unknown field `promt`; members are description, prompt"),
        ("budget: {steps: 0}", "`int` >= 1 - at `$.budget.steps`"),
        ("budget: {money: 1}", "unknown field `money`"),
        ("tools: git", "Expected `array`, got `str` - at `$.tools`"),
        ("prompt: ''", "length >= 1"),
        ("- a", "Expected `object`"),
        ("a: [", "watcher.yaml"),
        ("", "Expected `object`"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadDefinition) as failure:
        load_definition(write(tmp_path, text))
    assert said in str(failure.value)
    assert "watcher.yaml" in str(failure.value)


@pytest.mark.parametrize("name", ["Watcher.yaml", "a b.yaml", "watcher.yml", ".yaml", "-a.yaml"])
def test_other_file_names_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadDefinition, match=r"is named NAME\.yaml"):
        load_definition(write(tmp_path, "{}", name))


def test_one_that_is_missing_is_said_with_those_there_are(tmp_path: Path) -> None:
    write(tmp_path, "{}")
    for name in ("watchers", "../watcher", ""):
        with pytest.raises(BadDefinition, match=r"there is no agent .*; there are watcher"):
            find_definition(tmp_path, name)
    assert find_definition(tmp_path, "watcher") == AgentDefinition()


def test_a_broken_one_costs_itself_only(tmp_path: Path) -> None:
    write(tmp_path, "{}")
    write(tmp_path, "nonsense: 1", "broken.yaml")
    found = dict(definitions(tmp_path))
    assert isinstance(found["broken"], BadDefinition)
    assert found["watcher"] == AgentDefinition()
    assert list(definitions(tmp_path / "nowhere")) == []
