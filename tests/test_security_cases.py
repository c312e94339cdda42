"""The page of attacks and the tests that carry their ids say the same."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| (SEC-\d{3}) \| .* \| ((?:`[^`|]+` ?)+)\|$", re.MULTILINE)
WIRE = {f"SEC-{number:03}" for number in (*range(1, 26), 93)}
"""Attacks on the wire; other parts mark their tests in the same way, and may have rows of their own."""


def cases(tree: ast.AST) -> Iterator[str]:
    """The ids in `pytest.mark.sec(…)` of one module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.sec":
            (argument,) = node.args
            assert isinstance(argument, ast.Constant)
            yield str(argument.value)


def marked() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        for case in cases(ast.parse(path.read_text())):
            assert re.fullmatch(r"SEC-\d{3}", case), (path, case)
            found.setdefault(case, set()).add(str(path.relative_to(ROOT)))
    return found


def listed() -> dict[str, set[str]]:
    rows = ROW.findall((ROOT / "docs" / "security.md").read_text())
    assert len({case for case, _ in rows}) == len(rows), "a case is listed twice"
    return {case: set(re.findall(r"`([^`]+)`", files)) for case, files in rows}


def test_each_listed_case_names_exactly_the_files_with_tests_of_it() -> None:
    found = marked()
    assert {case: found.get(case) for case in listed()} == listed()


def test_every_attack_on_the_wire_is_listed_and_tested() -> None:
    assert set(listed()) >= WIRE
    assert set(marked()) >= WIRE
