"""How a catalog file is read: what is refused, and that each refusal says where."""

import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from catalog import CatalogError, CatalogInvalid, CatalogUnreadable, load_catalog
from tests.catalog.files import BOX, IMAGE, document, load, only_problem, problems

FOUR_MIB = 4 * 1024 * 1024
MAX_LOAD_S = 30.0
"""Of this process alone. Each takes less than half a second; growing with the square of the size it would be hours."""
MAX_LOAD_BYTES = 64 * 1024 * 1024
HEAD = "version: 1\nservers:\n  box:\n    title: Box\n"
SIZE = FOUR_MIB - 200


def spot(folder: Path, text: str) -> tuple[int | None, str | None, str]:
    problem = only_problem(folder, text)
    assert problem.file == folder / "catalog.yaml"
    return problem.line, problem.entry, problem.message


def test_problem_reads_as_file_line_entry_and_message(tmp_path: Path) -> None:
    problem = only_problem(tmp_path, document({"box": BOX + "colour: red\n"}))
    assert str(problem) == f'{tmp_path}/catalog.yaml:7: box: unknown key "colour"'


def test_all_problems_are_reported_at_once_in_the_order_of_lines(tmp_path: Path) -> None:
    text = document(
        {
            "box": BOX + "licence: MIT\nlimits: {memory: 3, pids: many}\n",
            "crate": "title: 3\ndescription: A crate.\nimage: Crate:1\ncategories: files\n",
            "a__b": BOX,
        },
        "profiles:\n  all:\n    title: All\n    servers: [box, crate, bx]\n  all: {}\nversion: 1\n",
    )
    with pytest.raises(CatalogInvalid) as caught:
        load(tmp_path, text)
    assert [(problem.line, problem.entry) for problem in caught.value.problems] == [
        (7, "box"),
        (8, "box"),
        (8, "box"),
        (10, "crate"),
        (12, "crate"),
        (13, "crate"),
        (14, "a__b"),
        (21, "profile all"),
        (22, "profile all"),
        (23, None),
    ]
    assert str(caught.value).count("\n") == 9


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("licence: MIT", '"license"'),
        ("Volumes: []", '"volumes"'),
        ("arg: []", '"args"'),
        ("limits: {memory-mib: 64}", '"memory_mib"'),
        ("secrets: [{name: box.k, env: K, requird: true}]", '"required"'),
        ("package: {ecosystem: pypi, name: a, version: a, pin: []}", '"pins"'),
        ("remote: {url: 'https://a.example', header: {}}", '"headers"'),
        ("volumes: [{name: a, target: /data, path: /x}]", "unknown key"),
    ],
)
def test_unknown_key_is_refused_with_the_key_that_was_meant(tmp_path: Path, key: str, hint: str) -> None:
    assert any(hint in problem.message for problem in problems(tmp_path, document({"box": BOX + key + "\n"})))


def test_unknown_key_at_the_top_is_refused(tmp_path: Path) -> None:
    line, entry, message = spot(tmp_path, "version: 1\nserver: {}\nservers: {}\n")
    assert (line, entry) == (2, None)
    assert 'did you mean "servers"' in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("servers: {}\n", "version is missing"),
        ('version: "1"\nservers: {}\n', "must be the number 1"),
        ("version: 2\nservers: {}\n", "must be the number 1"),
        ("version: true\nservers: {}\n", "must be the number 1"),
        ("version: 1\n", "servers is missing"),
        ("version: 1\nservers: []\n", "must be a mapping"),
        ("version: 1\nservers:\n", "must be a mapping"),
        ("version: 1\nservers: {}\nprofiles: [a]\n", "must be a mapping"),
        ("- version: 1\n", "must be a mapping"),
        ("hello\n", "must be a mapping"),
        ("version: 1\nservers: {box: hello}\n", "must be a mapping"),
        ("version: 1\nservers: {box: [a]}\n", "must be a mapping"),
        ("version: 1\nservers: {}\n---\nversion: 1\n", "second document"),
        ("# nothing here\n", "has no content"),
        ("---\n...\n", "must be a mapping"),
    ],
)
def test_document_of_the_wrong_shape_is_refused(tmp_path: Path, text: str, words: str) -> None:
    line, _, message = spot(tmp_path, text)
    assert line is not None
    assert words in message


def test_catalog_without_servers_is_possible(tmp_path: Path) -> None:
    catalog = load(tmp_path, "version: 1\nservers: {}\n")
    assert (dict(catalog.entries), dict(catalog.profiles)) == ({}, {})


@pytest.mark.sec("SEC-076")
@pytest.mark.parametrize(
    ("data", "words", "line"),
    [
        (b"", "is empty", 1),
        (b" \n\n", "is empty", 1),
        (b"\xef\xbb\xbfversion: 1\nservers: {}\n", "byte order mark", 1),
        ("version: 1\nservers: {}\n".encode("utf-16"), "byte order mark", 1),
        (b"version: 1\nservers: {}\r\n", "Unix line ends", 2),
        (b"version: 1\nservers: {}\n# caf\xe9\n", "not UTF-8", 3),
        (b"version: 1\n# \x00\nservers: {}\n", "U+0000", 2),
        (b"version: 1\nservers:\n\tbox: {}\n", "U+0009", 3),
        (b"version: 1\n# \xc2\x85\nservers: {}\n", "U+0085", 2),
        (b"version: 1\n# \x1b[31m\nservers: {}\n", "U+001B", 2),
    ],
    ids=["empty", "blank", "bom", "utf-16", "crlf", "latin-1", "nul", "tab", "c1", "escape"],
)
def test_file_that_is_not_plain_utf8_text_is_refused(tmp_path: Path, data: bytes, words: str, line: int) -> None:
    problem = only_problem(tmp_path, data)
    assert words in problem.message
    assert problem.line == line
    assert str(problem).isprintable()


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CatalogUnreadable, match=r"nowhere\.yaml: there is no such file"):
        load_catalog(tmp_path / "nowhere.yaml")


@pytest.mark.sec("SEC-077")
def test_folder_and_pipe_are_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(CatalogUnreadable, match="is not a file"):
            load_catalog(path)


def test_path_below_a_file_and_path_with_nul_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "catalog.yaml", tmp_path / "a\0b"):
        with pytest.raises(CatalogUnreadable):
            load_catalog(path)


@pytest.mark.sec("SEC-079")
def test_file_over_four_mib_is_refused(tmp_path: Path) -> None:
    (tmp_path / "big.yaml").write_bytes(b"#" * (FOUR_MIB + 1))
    with pytest.raises(CatalogUnreadable, match="larger than 4194304 bytes"):
        load_catalog(tmp_path / "big.yaml")


@pytest.mark.sec("SEC-076")
@pytest.mark.parametrize(
    ("key", "line"),
    [("title: Other", 7), ("limits:\n  pids: 3\n  pids: 4", 9), ('"title": Other', 7), ("env: {A: b, A: c}", 7)],
)
def test_repeated_key_is_refused_at_any_level(tmp_path: Path, key: str, line: int) -> None:
    at, entry, message = spot(tmp_path, document({"box": BOX + key + "\n"}))
    assert (at, entry) == (line, "box")
    assert "is here twice, first in line" in message


def test_repeated_id_is_refused(tmp_path: Path) -> None:
    text = document({"box": BOX}) + "  box:\n    title: Other\n"
    line, entry, message = spot(tmp_path, text)
    assert (line, entry) == (7, "box")
    assert "first in line 3" in message


@pytest.mark.sec("SEC-076")
@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system [id]",
        "!!python/name:os.system",
        "!!str x",
        "!!binary aGk=",
        "!custom {a: b}",
        "! x",
        "!!set {a}",
        "!<tag:yaml.org,2002:str> x",
    ],
)
def test_tag_is_refused_and_nothing_is_built(tmp_path: Path, value: str) -> None:
    found = problems(tmp_path, document({"box": BOX + f"license: {value}\n"}))
    assert (found[0].line, found[0].entry) == (7, "box")
    assert "a catalog has no tags" in found[0].message


def test_tag_directive_is_refused(tmp_path: Path) -> None:
    assert "%TAG" in only_problem(tmp_path, "%TAG ! tag:x.example,2026:\n---\nversion: 1\nservers: {}\n").message


@pytest.mark.sec("SEC-076")
def test_merge_key_is_refused(tmp_path: Path) -> None:
    text = "version: 1\nservers:\n  box: &box\n    title: Box\n    description: A box.\n    image: a:1\n"
    text += "  crate:\n    <<: *box\n    title: Crate\n"
    found = problems(tmp_path, text)
    assert (found[0].line, found[0].entry) == (8, "crate")
    assert "merge key" in found[0].message


def test_one_block_of_limits_may_be_shared_by_an_alias(tmp_path: Path) -> None:
    servers = {"box": BOX + "limits: &large {memory_mib: 2048}\n", "crate": BOX + "limits: *large\n"}
    assert load(tmp_path, document(servers)).entry("crate").limits.memory_mib == 2048


def test_problem_in_a_shared_block_is_reported_for_each_entry_that_uses_it(tmp_path: Path) -> None:
    servers = {"box": BOX + "limits: &large {memory: 1}\n", "crate": BOX + "limits: *large\n"}
    found = problems(tmp_path, document(servers))
    assert [(problem.line, problem.entry) for problem in found] == [(7, "box"), (7, "crate")]


@pytest.mark.sec("SEC-076")
@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("".join(f"a{i}: &a{i} [{','.join([f'*a{i - 1}'] * 9 if i else ['x'])}]\n" for i in range(9)), "inside of"),
        ("a: &a [x]\nb: [" + "*a, " * 33 + "]\n", "more than 32 aliases"),
        ("a: &a [*a]\n", "inside of an anchored value"),
        ("a: *b\n", "no anchor before it"),
        ("a: &a [" + "x, " * 300 + "]\n", "anchors more than 200 values"),
        ("a: &a x\n*a : y\n", "as a key"),
        ("a: &a x\nb: &a y\nc: *a\n", "anchor &a twice"),
        ("&a a: x\n", "anchor on a key"),
    ],
    ids=["billion laughs", "many", "itself", "unknown", "large", "key", "twice", "on key"],
)
def test_alias_bomb_in_any_form_is_refused(tmp_path: Path, text: str, words: str) -> None:
    assert any(words in problem.message for problem in problems(tmp_path, text))


@pytest.mark.sec("SEC-076")
@pytest.mark.parametrize(
    ("value", "reading"),
    [
        ("2026.10", "number"), ("1", "number"), ("0x1F", "number"), ("1_000", "number"), ("12e3", "number"),
        ("0o17", "number"), ("1:30", "number"), (".5", "number"), ("-.inf", "number"), (".NaN", "number"),
        ("+1", "number"), ("2026-11-24", "date"), ("2026-11-24 10:00:00", "date"), ("yes", "truth value"),
        ("No", "truth value"), ("on", "truth value"), ("true", "truth value"), ("n", "truth value"),
        ("=", "special value"),
    ],
)  # fmt: skip
def test_text_that_reads_as_something_else_must_be_quoted(tmp_path: Path, value: str, reading: str) -> None:
    text = document({"box": BOX + f"license: {value}\n"})
    assert spot(tmp_path, text) == (7, "box", f'license: reads as a {reading}; put it in quotes: "{value}"')
    quoted = document({"box": BOX + f'license: "{value}"\n'})
    assert load(tmp_path, quoted).entry("box").license == value


@pytest.mark.parametrize("value", ["", "~", "null", "NULL"])
def test_key_without_a_value_is_refused_even_where_the_key_may_be_left_out(tmp_path: Path, value: str) -> None:
    line, entry, message = spot(tmp_path, document({"box": BOX + f"license: {value}\n"}))
    assert (line, entry, message) == (7, "box", "license: has no value; write one, or leave the key out")


def test_unquoted_version_number_says_to_quote_it(tmp_path: Path) -> None:
    package = "package:\n  ecosystem: pypi\n  name: box\n  version: 2026.10\ncommand: [box]\n"
    line, entry, message = spot(tmp_path, document({"box": BOX + package}))
    assert (line, entry, message) == (10, "box", 'package.version: reads as a number; put it in quotes: "2026.10"')


@pytest.mark.parametrize("key", ["on", "1", "null", "2026-11-24", "~"])
def test_key_that_reads_as_something_else_must_be_quoted(tmp_path: Path, key: str) -> None:
    found = problems(tmp_path, document({"box": BOX + f"env: {{{key}: x}}\n"}))
    assert "put it in quotes" in found[0].message
    assert (found[0].line, found[0].entry) == (7, "box")


@pytest.mark.parametrize("key", ["[a]", "{a: b}", "? [a]"])
def test_list_or_mapping_as_a_key_is_refused(tmp_path: Path, key: str) -> None:
    text = document({"box": BOX + ("env: {" + key + ": x}\n" if "?" not in key else f"env:\n  {key}\n  : x\n")})
    _, entry, message = spot(tmp_path, text)
    assert entry == "box"
    assert "a key is text" in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("args: x", "args: must be a list, as in [one, two]"),
        ("args: {a: b}", "args: must be a list, as in [one, two]"),
        ("args: [[x]]", "args[0]: must be text"),
        ("args: [8080]", "args[0]: reads as a number; put it in quotes"),
        ("env: [A=b]", "env: must be a mapping of keys to values"),
        ("env: {PORT: 8080}", "env.PORT: reads as a number; put it in quotes"),
        ("env: {PORT: {a: b}}", "env.PORT: must be text"),
        ("limits: 3", "limits: must be a mapping of keys to values"),
        ("secrets: {name: a}", "secrets: must be a list, as in [one, two]"),
        ("secrets: [box.key]", "secrets[0]: must be a mapping of keys to values"),
        ("secrets: [{env: K, name: box.k, required: 'true'}]", "secrets[0].required: must be true or false"),
        ("volumes: [{name: data}]", "the key volumes[0].target is missing; add it"),
        ("network: host", "network: is \"host\", but must be one of 'none' or 'internet'"),
        ("network: no", 'network: reads as a truth value; put it in quotes: "no"'),
        ("network: [none]", "network: must be one of 'none' or 'internet'"),
    ],
)
def test_value_of_the_wrong_type_says_what_to_write(tmp_path: Path, line: str, message: str) -> None:
    at, entry, found = spot(tmp_path, document({"box": BOX + line + "\n"}))
    assert (at, entry) == (7, "box")
    assert found.startswith(message)


def test_wrong_value_in_env_or_args_is_never_repeated(tmp_path: Path) -> None:
    body = BOX + "env: {PIN: 731942, K: [s3cr3t]}\nargs: [731942]\n"
    text = str(CatalogError(problems(tmp_path, document({"box": body}))))
    assert "731942" not in text
    assert "s3cr3t" not in text


@pytest.mark.sec("SEC-078")
@pytest.mark.parametrize(
    "value",
    ['"a\\u202eb"', '"a\\u200bb"', "a\u2066b", "a\u200db", '"a\\0b"', '"a\\eb"', "a\U000e0041b", "a\u00adb"],
)
def test_invisible_character_is_refused_written_out_or_escaped(tmp_path: Path, value: str) -> None:
    found = problems(tmp_path, document({"box": BOX + f"env: {{A: {value}}}\n"}))
    assert (found[0].line, found[0].entry) == (7, "box")
    assert "invisible character U+" in found[0].message
    assert all(str(problem).isprintable() for problem in found)


def test_id_inside_of_the_body_is_refused(tmp_path: Path) -> None:
    line, entry, message = spot(tmp_path, document({"box": BOX + "id: box\n"}))
    assert (line, entry) == (7, "box")
    assert "remove id" in message


@pytest.mark.parametrize(
    ("text", "line", "entry"),
    [
        (HEAD + "    image: [a\n", 6, "box"),
        (HEAD + '    image: "a\n', 6, "box"),
        (HEAD + "   image: a\n", 5, "box"),
        (HEAD + "    image: a: b\n", 5, "box"),
        (HEAD + "    image: @a\n", 5, "box"),
        ("}\n", 1, None),
    ],
)
def test_broken_yaml_is_located(tmp_path: Path, text: str, line: int, entry: str | None) -> None:
    problem = only_problem(tmp_path, text)
    assert "is no YAML" in problem.message
    assert (problem.line, problem.entry) == (line, entry)


HOSTILE = {
    "flow sequences": "[" * SIZE,
    "flow mappings": "{a: " * (SIZE // 4),
    "block sequences": "- " * (SIZE // 2),
    "complex keys": "? " * (SIZE // 2),
    "deep indentation": "\n".join(" " * i + "a:" for i in range(2800)),
    "open quote": '"' + "a" * SIZE,
    "many items": "[a" + ", a" * (SIZE // 3) + "]",
    "many keys": HEAD + "".join(f"    k{i}: 1\n" for i in range(200_000)),
    "many entries": "version: 1\nservers:\n" + "".join(f"  k{i}: {{}}\n" for i in range(200_000)),
    "many profiles": "version: 1\nservers: {}\nprofiles:\n" + "".join(f"  k{i}: {{}}\n" for i in range(45_000)),
    "many arguments": HEAD + "    args:\n" + "      - 1\n" * 400_000,
    "many repetitions": HEAD + "    title: x\n" * 200_000,
    "one long text": HEAD + "    description: " + "a" * (SIZE - 100) + "\n",
    "one long key": HEAD + "    " + "a" * 1000 + ": 1\n",
    "one long number": HEAD + "    limits: {pids: " + "9" * 1_000_000 + "}\n",
    "many documents": "---\n" * (SIZE // 4),
    "many aliases": "a: &a [1]\nb: [" + "*a," * (SIZE // 4) + "]",
    "many anchors": "[" + ", ".join(f"&a{i} x" for i in range(200_000)) + "]",
    "many tags": "[" + "!a x, " * (SIZE // 6) + "]",
    "escapes": '"' + "\\x41" * (SIZE // 4) + '"',
    "folded lines": HEAD + "    description: >\n" + "      a\n\n" * (SIZE // 10),
    "wide characters": "\U0001f600" * (SIZE // 4),
    "simple keys": "{" + "a b c d, " * (SIZE // 9) + "}",
}


def cpu_s(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@pytest.mark.sec("SEC-076")
@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_quickly(tmp_path: Path, name: str) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(HOSTILE[name])
    assert path.stat().st_size <= FOUR_MIB
    start = time.process_time()
    with pytest.raises(CatalogInvalid) as caught:
        load_catalog(path)
    assert time.process_time() - start < MAX_LOAD_S
    assert all(problem.line for problem in caught.value.problems)
    assert len(str(caught.value)) < 10_000


@pytest.mark.sec("SEC-076")
@pytest.mark.parametrize("name", ["many items", "many entries", "one long text", "wide characters"])
def test_hostile_file_is_refused_in_bounded_memory(tmp_path: Path, name: str) -> None:
    path = tmp_path / "catalog.yaml"
    path.write_text(HOSTILE[name])
    tracemalloc.start()
    try:
        with pytest.raises(CatalogInvalid):
            load_catalog(path)
        assert tracemalloc.get_traced_memory()[1] < MAX_LOAD_BYTES
    finally:
        tracemalloc.stop()


@pytest.mark.sec("SEC-076")
def test_nesting_stops_at_the_limit_and_names_the_entry(tmp_path: Path) -> None:
    line, entry, message = spot(tmp_path, document({"box": BOX + "args: " + "[" * 33 + "]" * 33 + "\n"}))
    assert (line, entry) == (7, "box")
    assert "nested more than 32 deep" in message


def test_pure_python_parser_gives_the_same_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = document({"box": BOX + 'env: {A: "1"}\nlimits: {pids: 3}\n'})
    bad = document({"box": BOX + "env: {A: 1}\nlicense: !x y\ntitle: B\nlimits: {pids: '3'}\n"})
    entry = load(tmp_path, good).entry("box")
    found = problems(tmp_path, bad)
    monkeypatch.delattr(yaml, "CSafeLoader", raising=False)
    assert load(tmp_path, good).entry("box") == entry
    assert problems(tmp_path, bad) == found


def test_loading_three_hundred_entries_costs_little_more_than_parsing_them(tmp_path: Path) -> None:
    tools = ", ".join(f"tool_{i}" for i in range(15))
    body = f"{BOX}env: {{A: b, C: d}}\nargs: [a, b]\ntools: [{tools}]\nvolumes: [{{name: a, target: /data}}]\n"
    path = tmp_path / "catalog.yaml"
    text = document({f"box{i}": body for i in range(330)})
    path.write_text(text)
    parser = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    parsing = min(cpu_s(lambda: list(yaml.parse(text, Loader=parser))) for _ in range(5))
    loading = min(cpu_s(lambda: load_catalog(path)) for _ in range(5))
    assert loading < 25 * parsing  # about 5 times where the parser is in C; both in milliseconds
    catalog = load_catalog(path)
    assert len(catalog.entries) == 330
    assert catalog.entry("box329").image == IMAGE


SNIPPETS = (
    "{", "}", "[", "]", "&a ", "*a", "<<: ", "!!python/object:os.system ", "---\n", "...\n", "? ", ": ", "- ", "|\n",
    ">-\n", "'", '"', "\\x00", "\u202e", "\ufeff", "\t", "\r\n", "#", "0x1F", "1e9", ".nan", "~", "yes", "%TAG ! x\n",
)  # fmt: skip
WHOLE = document({"box": BOX + "env: {A: b}\ntools: [put]\nlimits: {pids: 3}\n", "bag": BOX}) + (
    "profiles:\n  work:\n    title: Work\n    servers: [box]\n    tools: {box: [put]}\n"
)


@pytest.mark.sec("SEC-076")
@settings(max_examples=500, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(edits=st.lists(st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 12), st.sampled_from(SNIPPETS)), max_size=4))
def test_damaged_file_is_loaded_or_refused_with_a_located_problem(
    tmp_path: Path, edits: list[tuple[int, int, str]]
) -> None:
    text = WHOLE
    for at, cut, snippet in edits:
        text = text[:at] + snippet + text[at + cut :]
    path = tmp_path / "catalog.yaml"
    path.write_text(text)
    try:
        ids, found = list(load_catalog(path).entries), None
    except CatalogInvalid as invalid:
        ids, found = [], invalid.problems
    assert found is None or found
    assert all(problem.line and str(problem) for problem in found or ())
    assert all(id.isascii() for id in ids)
