"""Fifty tools of six servers, as a gateway offers them: names and parameters of real ones, described in our words.

Knows nothing of how they are called."""

from typing import Any


def _tool(name: str, description: str, required: str = "", optional: str = "", **kinds: Any) -> dict[str, Any]:
    """`required` and `optional` list parameters; a kind in `kinds` is a schema, a type name or a description."""
    properties: dict[str, Any] = {}
    for parameter in f"{required} {optional}".split():
        kind = kinds.get(parameter, "string")
        if isinstance(kind, str):
            kind = {"type": kind} if kind in _TYPES else {"type": "string", "description": kind}
        properties[parameter] = kind
    schema = {"type": "object", "properties": properties, "required": required.split()}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}


_TYPES = ("string", "number", "integer", "boolean")
_STRINGS = {"type": "array", "items": {"type": "string"}}
_ZONE = "IANA time zone name, for example America/New_York or Europe/London"


def _objects(*members: str, **lists: Any) -> dict[str, Any]:
    properties = {member: lists.get(member, {"type": "string"}) for member in (*members, *lists)}
    return {"type": "array", "items": {"type": "object", "properties": properties, "required": list(properties)}}


TOOLS = [
    _tool("time__get_current_time", "Get the current time in a time zone", "timezone", timezone=_ZONE),
    _tool(
        "time__convert_time",
        "Convert a time from one time zone to another",
        "source_timezone time target_timezone",
        source_timezone=_ZONE,
        time="Time to convert, 24-hour format HH:MM",
        target_timezone=_ZONE,
    ),
    _tool("filesystem__read_text_file", "Read a file as text", "path", "tail head", tail="number", head="number"),
    _tool("filesystem__read_media_file", "Read an image or audio file as base64", "path"),
    _tool("filesystem__read_multiple_files", "Read the contents of several files at once", "paths", paths=_STRINGS),
    _tool("filesystem__write_file", "Create a new file or overwrite an existing one with content", "path content"),
    _tool(
        "filesystem__edit_file",
        "Replace lines of a text file and show the difference",
        "path edits",
        "dryRun",
        edits=_objects("oldText", "newText"),
        dryRun="boolean",
    ),
    _tool("filesystem__create_directory", "Create a directory, or make sure that it exists", "path"),
    _tool("filesystem__list_directory", "List the files and directories in a directory", "path"),
    _tool("filesystem__list_directory_with_sizes", "List a directory with file sizes", "path", "sortBy"),
    _tool("filesystem__directory_tree", "Show a directory and all below it as a tree in JSON", "path"),
    _tool("filesystem__move_file", "Move or rename a file or directory", "source destination"),
    _tool("filesystem__search_files", "Search files and directories matching a pattern", "path pattern"),
    _tool("filesystem__get_file_info", "Get metadata of a file: size, times, permissions", "path"),
    _tool("filesystem__list_allowed_directories", "List the directories that may be accessed"),
    _tool(
        "memory__create_entities",
        "Create new entities in the knowledge graph",
        "entities",
        entities=_objects("name", "entityType", observations=_STRINGS),
    ),
    _tool(
        "memory__create_relations",
        "Create relations between entities in the knowledge graph",
        "relations",
        relations=_objects("from", "to", "relationType"),
    ),
    _tool(
        "memory__add_observations",
        "Add observations to entities in the knowledge graph",
        "observations",
        observations=_objects("entityName", contents=_STRINGS),
    ),
    _tool("memory__delete_entities", "Delete entities from the knowledge graph", "entityNames", entityNames=_STRINGS),
    _tool(
        "memory__delete_observations",
        "Delete observations of entities",
        "deletions",
        deletions=_objects("entityName", observations=_STRINGS),
    ),
    _tool(
        "memory__delete_relations",
        "Delete relations from the knowledge graph",
        "relations",
        relations=_objects("from", "to", "relationType"),
    ),
    _tool("memory__read_graph", "Read the whole knowledge graph"),
    _tool("memory__search_nodes", "Search nodes of the knowledge graph", "query"),
    _tool("memory__open_nodes", "Open nodes of the knowledge graph by name", "names", names=_STRINGS),
    _tool("git__git_status", "Show the status of the working tree", "repo_path"),
    _tool("git__git_diff_unstaged", "Show changes that are not staged", "repo_path", "context_lines"),
    _tool("git__git_diff_staged", "Show changes that are staged", "repo_path", "context_lines"),
    _tool("git__git_diff", "Show differences between branches or commits", "repo_path target", "context_lines"),
    _tool("git__git_commit", "Record changes in the repository", "repo_path message"),
    _tool("git__git_add", "Stage the contents of files", "repo_path files", files=_STRINGS),
    _tool("git__git_reset", "Unstage all staged changes", "repo_path"),
    _tool("git__git_log", "Show the commit log", "repo_path", "max_count", max_count="integer"),
    _tool("git__git_create_branch", "Create a branch", "repo_path branch_name", "base_branch"),
    _tool("git__git_checkout", "Switch branches", "repo_path branch_name"),
    _tool("git__git_show", "Show what a commit contains", "repo_path revision"),
    _tool("git__git_branch", "List branches", "repo_path branch_type"),
    _tool("SQLite__read_query", "Run a SELECT query on the SQLite database", "query", query="SQL to run"),
    _tool("SQLite__write_query", "Run an INSERT, UPDATE or DELETE query on the SQLite database", "query"),
    _tool("SQLite__create_table", "Create a table in the SQLite database", "query", query="CREATE TABLE statement"),
    _tool("SQLite__list_tables", "List all tables in the SQLite database"),
    _tool("SQLite__describe_table", "Get the schema of a table", "table_name"),
    _tool("SQLite__append_insight", "Add a business insight to the memo", "insight"),
    _tool("everything__echo", "Echo the input back", "message"),
    _tool("everything__get-sum", "Return the sum of two numbers", "a b", a="number", b="number"),
    _tool("everything__get-env", "Return the environment variables of the server"),
    _tool("everything__get-tiny-image", "Return a tiny image"),
    _tool(
        "everything__get-structured-content",
        "Return structured weather for a location",
        "location",
        location={"type": "string", "enum": ["New York", "Chicago", "Los Angeles"]},
    ),
    _tool(
        "everything__trigger-long-running-operation",
        "Run a long operation with progress",
        "",
        "duration steps",
        duration="number",
        steps="number",
    ),
    _tool("everything__toggle-simulated-logging", "Turn simulated logging on or off"),
    _tool(
        "everything__simulate-research-query", "Simulate research on a topic", "topic", "ambiguous", ambiguous="boolean"
    ),
]
