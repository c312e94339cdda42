"""Sixty tasks for an agent with the starter servers, each with an exact check of the answer and of what was done.

Knows the servers' tools and the world that `seed` makes; nothing of models. Frozen: a changed task is a new one."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

CallTool = Callable[[str, dict[str, Any]], Awaitable[str]]
Effect = Callable[[CallTool], Awaitable[bool]]
REPOSITORY: Final = "/data/project"


@dataclass(frozen=True)
class Task:
    """What the agent is told, and how to see that it did it."""

    id: str
    group: str
    text: str
    tools: frozenset[str]
    """Any of them can do it."""
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Patterns that the values of one call of such a tool match in full."""
    answer: tuple[str, ...] = ()
    """Patterns that the answer holds, whatever their case."""
    effect: Effect | None = None

    def chose(self, name: str) -> bool:
        return name in self.tools

    def argued(self, arguments: Mapping[str, Any]) -> bool:
        return all(
            name in arguments and re.fullmatch(pattern, str(arguments[name]), re.DOTALL | re.IGNORECASE)
            for name, pattern in self.arguments.items()
        )

    def answered(self, text: str) -> bool:
        return all(re.search(pattern, text, re.IGNORECASE) for pattern in self.answer)


def _task(
    id: str,
    text: str,
    tools: str,
    answer: str | tuple[str, ...] = (),
    effect: Effect | None = None,
    **arguments: str,
) -> Task:
    patterns = (answer,) if isinstance(answer, str) else answer
    return Task(id, id.partition("-")[0], text, frozenset(tools.split()), arguments, patterns, effect)


def _told(tool: str, arguments: dict[str, Any], *patterns: str) -> Effect:
    """That a tool now says what matches."""

    async def check(call: CallTool) -> bool:
        text = await call(tool, arguments)
        return all(re.search(pattern, text, re.DOTALL) for pattern in patterns)

    return check


def _file(path: str, pattern: str) -> Effect:
    return _told("filesystem__read_text_file", {"path": path}, pattern)


def _sql(query: str, pattern: str) -> Effect:
    return _told("SQLite__read_query", {"query": query}, pattern)


def _graph(*patterns: str) -> Effect:
    return _told("memory__read_graph", {}, *patterns)


_READ = "filesystem__read_text_file filesystem__read_file filesystem__read_multiple_files"
_LIST = "filesystem__list_directory filesystem__list_directory_with_sizes filesystem__directory_tree"
_KNOWN = "memory__search_nodes memory__open_nodes memory__read_graph"
_TIME = "time__get_current_time"
_CONVERT = "time__convert_time"
_SUM = "everything__get-sum"
_LOG = "git__git_log"

TASKS: Final[tuple[Task, ...]] = (
    # -- time
    _task("time-tokyo", "What time is it in Tokyo right now?", _TIME, r"\d{1,2}:\d\d", timezone="Asia/Tokyo"),
    _task("time-berlin", "Tell me the current time in Berlin.", _TIME, r"\d{1,2}:\d\d", timezone="Europe/Berlin"),
    _task("time-utc", "What is the current time in UTC?", _TIME, r"\d{1,2}:\d\d", timezone="(Etc/)?UTC"),
    _task(
        "time-new-york",
        "What time is it in New York?",
        _TIME,
        r"\d{1,2}:\d\d",
        timezone="(America/New_York|US/Eastern)",
    ),
    _task(
        "time-convert-tokyo",
        "Convert 09:30 in Asia/Tokyo to UTC.",
        _CONVERT,
        r"\b0?0:30|12:30 ?AM",
        source_timezone="Asia/Tokyo",
        time="0?9:30",
        target_timezone="(Etc/)?UTC",
    ),
    _task(
        "time-convert-kolkata",
        "If it is 18:00 in UTC, what time is it in Asia/Kolkata?",
        _CONVERT,
        r"23:30|11:30 ?PM",
        source_timezone="(Etc/)?UTC",
        time="18:00",
        target_timezone="Asia/Kolkata",
    ),
    _task(
        "time-convert-dubai",
        "Convert 12:15 in Asia/Dubai to Asia/Tokyo time.",
        _CONVERT,
        r"17:15|5:15 ?PM",
        source_timezone="Asia/Dubai",
        time="12:15",
        target_timezone="Asia/Tokyo",
    ),
    # -- files
    _task("files-read", "What does the file /data/notes.txt say?", _READ, "violet"),
    _task("files-read-port", "Which port is set in /data/config/app.ini?", _READ, r"\b8123\b"),
    _task("files-read-name", "Read /data/people.csv and tell me how old Carol is.", _READ, r"\b47\b"),
    _task("files-list", "Which files are in the folder /data/config?", _LIST, (r"app\.ini", r"users\.json")),
    _task("files-list-logs", "List the contents of the directory /data/logs.", _LIST, (r"monday", r"tuesday")),
    _task(
        "files-write",
        "Create a file /data/hello.txt with the text: good morning",
        "filesystem__write_file",
        effect=_file("/data/hello.txt", r"^\W*[Gg]ood morning"),
        path="/data/hello.txt",
    ),
    _task(
        "files-write-list",
        "Save the word 'umbrella' in the file /data/shopping.txt.",
        "filesystem__write_file",
        effect=_file("/data/shopping.txt", "umbrella"),
        path="/data/shopping.txt",
    ),
    _task(
        "files-mkdir",
        "Make a new directory called /data/archive.",
        "filesystem__create_directory",
        effect=_told("filesystem__list_directory", {"path": "/data"}, r"\[DIR\] archive"),
        path="/data/archive/?",
    ),
    _task(
        "files-move",
        "Rename the file /data/old-name.txt to /data/new-name.txt.",
        "filesystem__move_file",
        effect=_file("/data/new-name.txt", "renamed"),
        source="/data/old-name.txt",
        destination="/data/new-name.txt",
    ),
    _task(
        "files-edit",
        "In the file /data/draft.txt replace the word 'colour' with 'color'.",
        "filesystem__edit_file filesystem__write_file",
        effect=_file("/data/draft.txt", r"one color only"),
        path="/data/draft.txt",
    ),
    _task("files-info", "How many bytes does the file /data/big.bin have?", "filesystem__get_file_info", r"\b4,?096\b"),
    _task(
        "files-search",
        "Search the directory /data for files that match *.csv.",
        "filesystem__search_files",
        r"people\.csv",
        path="/data/?",
    ),
    _task(
        "files-allowed", "Which directories am I allowed to access?", "filesystem__list_allowed_directories", "/data"
    ),
    # -- memory
    _task("memory-find", "What do you remember about Grace Hopper?", _KNOWN, "compiler|cobol|navy"),
    _task("memory-works", "Search the memory graph: where does Linus work?", _KNOWN, "Helsinki"),
    _task("memory-open", "Open the node 'Ada Lovelace' in memory and tell me what is known.", _KNOWN, "analytical"),
    _task(
        "memory-create",
        "Remember a person named Katherine Johnson who calculated orbits.",
        "memory__create_entities",
        effect=_graph("Katherine Johnson", "orbit"),
    ),
    _task(
        "memory-create-city",
        "Add an entity 'Lisbon' of type 'city' with the observation 'has trams' to the memory graph.",
        "memory__create_entities",
        effect=_graph("Lisbon", "city", "tram"),
    ),
    _task(
        "memory-observe",
        "Add the observation 'likes chess' to the existing entity 'Linus' in memory.",
        "memory__add_observations",
        effect=_graph("likes chess"),
    ),
    _task(
        "memory-relate",
        "In memory, create a relation: 'Ada Lovelace' knows 'Grace Hopper'.",
        "memory__create_relations",
        effect=_graph('"from":\\s*"Ada Lovelace"', '"to":\\s*"Grace Hopper"'),
    ),
    _task(
        "memory-delete",
        "Delete the entity 'Obsolete' from the memory graph.",
        "memory__delete_entities",
        effect=_told("memory__search_nodes", {"query": "Obsolete"}, r'"entities":\s*\[\s*\]'),
    ),
    _task(
        "memory-graph", "Read the whole memory graph and name the people in it.", "memory__read_graph", "Grace Hopper"
    ),
    # -- git
    _task("git-log", f"Show the commit log of the git repository {REPOSITORY}.", _LOG, "first light|readme|parser"),
    _task("git-author", f"Who made the last commit in the git repository {REPOSITORY}?", _LOG, "Edsger"),
    _task(
        "git-message",
        f"What is the message of the latest commit in the repository {REPOSITORY}?",
        f"{_LOG} git__git_show",
        "parser",
    ),
    _task("git-status", f"What is the git status of {REPOSITORY}?", "git__git_status", "todo"),
    _task(
        "git-untracked",
        f"Are there untracked files in the git repository {REPOSITORY}? Name them.",
        "git__git_status",
        r"todo\.md",
    ),
    _task("git-branches", f"List the local branches of the git repository {REPOSITORY}.", "git__git_branch", "feature"),
    _task(
        "git-diff",
        f"Show the unstaged changes in the git repository {REPOSITORY}.",
        "git__git_diff_unstaged git__git_diff",
        "answer|42|main",
    ),
    _task("git-show", f"Show the commit HEAD of the git repository {REPOSITORY}.", "git__git_show", "parser"),
    _task(
        "git-branch-new",
        f"Create a branch named 'release' in the git repository {REPOSITORY}.",
        "git__git_create_branch",
        effect=_told("git__git_branch", {"repo_path": REPOSITORY, "branch_type": "local"}, "release"),
        branch_name="release",
    ),
    _task(
        "git-add",
        f"Stage the file todo.md in the git repository {REPOSITORY}.",
        "git__git_add",
        effect=_told("git__git_diff_staged", {"repo_path": REPOSITORY}, r"todo\.md"),
    ),
    # -- SQLite
    _task("sqlite-tables", "Which tables are in the SQLite database?", "SQLite__list_tables", ("books", "orders")),
    _task(
        "sqlite-describe",
        "Describe the columns of the database table books.",
        "SQLite__describe_table",
        ("title", "year"),
        table_name="books",
    ),
    _task("sqlite-count", "How many rows are in the database table books?", "SQLite__read_query", r"\b5\b|five"),
    _task(
        "sqlite-oldest",
        "Query the database: which title in the table books has the year 1815?",
        "SQLite__read_query",
        "Emma",
    ),
    _task(
        "sqlite-sum",
        "Use SQL to compute the sum of the column amount in the table orders.",
        "SQLite__read_query",
        r"\b60\b",
        query=r".*sum\(\W*amount\W*\).*orders.*",
    ),
    _task(
        "sqlite-where",
        "Select the titles from the database table books where the year is greater than 1900.",
        "SQLite__read_query",
        "Ulysses",
    ),
    _task(
        "sqlite-insert",
        "Insert a row into the database table orders with id 4 and amount 99.",
        "SQLite__write_query",
        effect=_sql("SELECT amount FROM orders WHERE id = 4", r"\b99\b"),
    ),
    _task(
        "sqlite-update",
        "Update the database table stock: set quantity to 12 where item is 'bolt'.",
        "SQLite__write_query",
        effect=_sql("SELECT quantity FROM stock WHERE item = 'bolt'", r"\b12\b"),
    ),
    _task(
        "sqlite-delete",
        "Delete the rows from the database table stock where item is 'rust'.",
        "SQLite__write_query",
        effect=_sql("SELECT count(*) AS n FROM stock WHERE item = 'rust'", r"\b0\b"),
    ),
    _task(
        "sqlite-create",
        "Create a database table named visitors with the columns id INTEGER and name TEXT.",
        "SQLite__create_table",
        effect=_told("SQLite__list_tables", {}, "visitors"),
    ),
    # -- arithmetic
    _task("sum-small", "Add 17 and 25 with the sum tool.", _SUM, r"\b42\b", a=r"17(\.0)?", b=r"25(\.0)?"),
    _task("sum-large", "What is 123456 plus 654321?", _SUM, r"777,?777"),
    _task("sum-negative", "What is the sum of -15 and 40?", _SUM, r"\b25\b"),
    _task("sum-decimal", "Add the numbers 2.5 and 4.75.", _SUM, r"\b7\.25\b"),
    _task("sum-words", "Compute the sum of three hundred and forty-five.", _SUM, r"\b345\b", a="300", b="45"),
    _task("sum-money", "I paid 1999 and then 501. Use a tool to get the total.", _SUM, r"2,?500"),
    # -- search and several steps
    _task("search-memory", "Search the memory graph for 'compiler'. Who is it about?", _KNOWN, "Grace Hopper"),
    _task("search-log", "Search /data for files that match *.log.", "filesystem__search_files", r"monday\.log"),
    _task("search-echo", "Use the echo tool to repeat the words: over and out", "everything__echo", "over and out"),
    _task(
        "search-weather",
        "Get the structured weather content for Chicago.",
        "everything__get-structured-content",
        r"cloud|rain|sun|drizzle|snow|temperature|\d",
        location="Chicago",
    ),
    _task(
        "search-steps",
        "Read /data/source.txt, then write exactly the same text to /data/copy.txt.",
        "filesystem__write_file",
        effect=_file("/data/copy.txt", "the quick brown fox"),
        path="/data/copy.txt",
    ),
)


async def seed(call: CallTool, volumes: Path) -> None:
    """Make the world of the tasks, through the tools themselves; the repository where the git server has its volume.

    Args:
        volumes: the folder that holds the servers' volumes.
    """
    for path in ("/data/config", "/data/logs"):
        await call("filesystem__create_directory", {"path": path})
    for path, content in {
        "/data/notes.txt": "The password of the day is violet.\n",
        "/data/config/app.ini": "[server]\nhost = localhost\nport = 8123\n",
        "/data/config/users.json": '["alice", "bob"]\n',
        "/data/people.csv": "name,age\nAlice,31\nBob,25\nCarol,47\n",
        "/data/logs/monday.log": "quiet\n",
        "/data/logs/tuesday.log": "busy\n",
        "/data/old-name.txt": "to be renamed\n",
        "/data/draft.txt": "There is one colour only.\n",
        "/data/big.bin": "x" * 4096,
        "/data/source.txt": "the quick brown fox\n",
    }.items():
        await call("filesystem__write_file", {"path": path, "content": content})
    known = {
        "Grace Hopper": "wrote the first compiler",
        "Ada Lovelace": "described the analytical engine",
        "Linus": "works in Helsinki",
        "Obsolete": "is of no use",
    }
    entities = [{"name": name, "entityType": "person", "observations": [what]} for name, what in known.items()]
    await call("memory__create_entities", {"entities": entities})
    for query in (
        "CREATE TABLE books (title TEXT, year INTEGER)",
        "CREATE TABLE orders (id INTEGER, amount INTEGER)",
        "CREATE TABLE stock (item TEXT, quantity INTEGER)",
    ):
        await call("SQLite__create_table", {"query": query})
    for query in (
        "INSERT INTO books VALUES ('Emma', 1815), ('Middlemarch', 1871), ('Ulysses', 1922), ('Walden', 1854),"
        " ('Dubliners', 1914)",
        "INSERT INTO orders VALUES (1, 10), (2, 20), (3, 30)",
        "INSERT INTO stock VALUES ('bolt', 3), ('nut', 8), ('rust', 1)",
    ):
        await call("SQLite__write_query", {"query": query})
    _repository(volumes / "git" / "data" / "project")


def _repository(folder: Path) -> None:
    folder.mkdir(parents=True)

    def git(*arguments: str) -> None:
        author = ("-c", "user.name=Edsger", "-c", "user.email=edsger@example.org")
        subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True)

    git("init", "--initial-branch", "main")
    for name, text, message in (
        ("README.md", "# Project\n", "Add a readme"),
        ("light.py", "print('light')\n", "First light"),
        ("parser.py", "answer = 41\n", "Add the parser"),
    ):
        (folder / name).write_text(text)
        git("add", name)
        git("commit", "-m", message)
    git("branch", "feature")
    (folder / "parser.py").write_text("answer = 42\n")
    (folder / "todo.md").write_text("- more\n")
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
