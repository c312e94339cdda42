"""That people find the server they mean."""

import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from benchmarks import search
from catalog import Catalog, find_shipped_catalog, load_catalog
from tests.catalog.files import BOX, document, load

FROZEN = "412618f4c2af91715124979015dc7c75455714f7a5425f9b81688fedd03179ab"
"""Of the questions: who changes them to please the ranking changes this, too."""


@pytest.fixture(scope="module")
def shipped() -> Catalog:
    return load_catalog(find_shipped_catalog())


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("time", "time"),
        ("TIME ZONE", "time"),
        ("sqlite", "SQLite"),
        ("sql", "database-server"),
        ("sequential thinking", "sequentialthinking"),
        ("dynamo", "awslabs-dynamodb"),
        ("kubernetes", "kubernetes"),
        ("helm pods", "kubectl-mcp-server"),
        ("git commit", "git"),
        ("get_transcript", "youtube_transcript"),
        ("aws documentation", "aws-documentation"),
        ("calculate", "calculator"),
        ("promql", "prometheus"),
    ],
)
def test_obvious_words_find_the_obvious_server_first(shipped: Catalog, text: str, first: str) -> None:
    assert shipped.search(text)[0].id == first


def test_every_shipped_server_is_first_for_its_own_id(shipped: Catalog) -> None:
    for id in shipped.entries:
        assert shipped.search(id)[0].id == id


def test_empty_text_lists_the_whole_catalog_in_its_order(shipped: Catalog) -> None:
    assert [entry.id for entry in shipped.search("  ")] == list(shipped.entries)


def test_words_that_occur_nowhere_find_nothing(shipped: Catalog) -> None:
    assert shipped.search("zyzzyva") == []
    assert shipped.search("???") == []


def test_more_matching_words_rank_higher(tmp_path: Path) -> None:
    servers = {
        "one": BOX.replace("Keeps things in a box.", "Reads weather."),
        "two": BOX.replace("Keeps things in a box.", "Reads weather and tides."),
    }
    assert [entry.id for entry in load(tmp_path, document(servers)).search("weather tides")] == ["two", "one"]


def test_plural_accent_form_and_camel_case_do_not_matter(tmp_path: Path) -> None:
    catalog = load(tmp_path, document({"box": BOX + "tools: [getForecast]\n"}))
    for text in ("forecasts", "FORECAST", "\uff26orecast", "boxes box"):
        assert [entry.id for entry in catalog.search(text)] == ["box"], text


def test_very_long_search_text_is_cut(shipped: Catalog) -> None:
    assert shipped.search("git " + "word" * 1_000_000)[0].id == "git"


def test_empty_catalog_can_be_searched(tmp_path: Path) -> None:
    assert load(tmp_path, "version: 1\nservers: {}\n").search("time") == []


def test_two_threads_search_at_once(shipped: Catalog) -> None:
    with ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda text: shipped.search(text)[0].id, ["git commit", "promql"] * 20))
    assert found == ["git", "prometheus"] * 20


def test_quotes_and_operators_of_the_index_are_only_words(shipped: Catalog) -> None:
    for text in (
        '"git',
        "git OR",
        "NOT git",
        "git*",
        "tools:git",
        "(git",
        "git NEAR(x)",
        "git; DROP TABLE x",
    ):
        assert "git" in [entry.id for entry in shipped.search(text)], text
    assert len(shipped.search("")) == len(shipped.entries)


def test_questions_of_the_frozen_set_are_answered_well(shipped: Catalog) -> None:
    asked = search.questions()
    assert len(asked) == 200
    assert len({question.query for question in asked}) == 200
    assert hashlib.sha256(search.QUERIES.read_bytes()).hexdigest() == FROZEN
    score, lacking = search.score(shipped.search, asked)
    assert score.recall_at_5 >= 0.9, "\n".join(f"{question.query}: {first}" for question, first in lacking)
    assert score.mrr >= 0.9
