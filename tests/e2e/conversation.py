"""One scripted conversation that exercises what the starter servers offer, and what a client was told in it.

Knows the servers' tools; neither the client libraries nor what runs the servers.
"""

import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.e2e.gateways import RunningGateway

Step = dict[str, Any]
TALK_S = 300
LONG = "everything__trigger-long-running-operation"


class Client(NamedTuple):
    """A client program, how it reaches the gateway, and how it opens a connection."""

    argv: tuple[str, ...]
    transport: str
    mode: str | Mapping[str, str]


class Conversation:
    """The answers to the steps, each under its label."""

    def __init__(self, gateway: RunningGateway, tag: str, revision: str, answers: Mapping[str, dict[str, Any]]) -> None:
        self.gateway = gateway
        self.tag = tag
        self.revision = revision
        self.answers = answers

    def result(self, label: str) -> Any:
        answer = self.answers[label]
        assert "result" in answer, f"{label}: {answer}"
        return answer["result"]

    def error(self, label: str) -> dict[str, Any]:
        answer = self.answers[label]
        assert "error" in answer, f"{label}: {answer}"
        error: dict[str, Any] = answer["error"]
        return error

    def text(self, label: str) -> str:
        """The text of a tool's result, which must not be an error."""
        result = self.result(label)
        assert not result.get("isError"), f"{label}: {result}"
        return "\n".join(block["text"] for block in result["content"] if block["type"] == "text")

    def audited(self, label: str) -> list[dict[str, Any]]:
        """The audit records of this very client for the tool of a step."""
        name = script(self.tag)[label]["name"]
        return [line for line in self.gateway.audit() if (line["client"], line["name"]) == (self.tag, name)]


def script(tag: str) -> dict[str, Step]:
    """The steps. `tag` is part of every name that is created, so that no two conversations meet."""

    def call(name: str, arguments: Mapping[str, Any] | None = None, **more: Any) -> Step:
        return {"do": "call_tool", "name": name, "arguments": arguments or {}, **more}

    repository = {"repo_path": f"/data/{tag}"}
    return {
        "tools": {"do": "list_tools"},
        "prompts": {"do": "list_prompts"},
        "resources": {"do": "list_resources"},
        "templates": {"do": "list_templates"},
        "ping": {"do": "ping", "handshake_only": True},
        "log level": {"do": "set_level", "level": "warning", "handshake_only": True},
        "time": call("time__get_current_time", {"timezone": "Asia/Tokyo"}),
        "write": call("filesystem__write_file", {"path": f"/data/{tag}.txt", "content": f"Grüße, {tag}\n"}),
        "read": call("filesystem__read_text_file", {"path": f"/data/{tag}.txt"}),
        "read outside": call("filesystem__read_text_file", {"path": "/etc/hostname"}),
        "remember": call(
            "memory__create_entities",
            {"entities": [{"name": tag, "entityType": "client", "observations": ["speaks MCP"]}]},
        ),
        "recall": call("memory__read_graph"),
        "think": call(
            "sequentialthinking__sequentialthinking",
            {"thought": "First this.", "thoughtNumber": 1, "totalThoughts": 2, "nextThoughtNeeded": True},
        ),
        "git add": call("git__git_add", {**repository, "files": ["notes.txt"]}),
        "git commit": call("git__git_commit", {**repository, "message": f"Notes of {tag}"}),
        "git log": call("git__git_log", repository),
        "create": call("SQLite__create_table", {"query": f"CREATE TABLE {tag} (word TEXT, n INTEGER)"}),
        "insert": call("SQLite__write_query", {"query": f"INSERT INTO {tag} VALUES ('lock', 6), ('gate', 7)"}),
        "select": call("SQLite__read_query", {"query": f"SELECT word FROM {tag} WHERE n = 7"}),
        "echo": call("everything__echo", {"message": "“quoted” \\ \u2028 𝄞"}),
        "sum": call("everything__get-sum", {"a": 40, "b": 2}),
        "structured": call("everything__get-structured-content", {"location": "Chicago"}),
        "links": call("everything__get-resource-links", {"count": 3}),
        "embedded": call("everything__get-resource-reference", {"resourceType": "Text", "resourceId": 4}),
        "annotated": call("everything__get-annotated-message", {"messageType": "error", "includeImage": True}),
        "image": call("everything__get-tiny-image"),
        "bad arguments": call("everything__get-sum", {"a": "forty"}),
        "unknown tool": call("everything__no-such-tool"),
        "unknown server": call("nowhere__tool"),
        "prompt": {"do": "get_prompt", "name": "everything__args-prompt", "arguments": {"city": "Oslo"}},
        "prompt with resource": {
            "do": "get_prompt",
            "name": "everything__resource-prompt",
            "arguments": {"resourceType": "Text", "resourceId": "5"},
        },
        "unknown prompt": {"do": "get_prompt", "name": "everything__no-such-prompt", "arguments": {}},
        "static resource": {
            "do": "read_resource",
            "uri": "lockgate://everything/demo://resource/static/document/features.md",
        },
        "dynamic resource": {"do": "read_resource", "uri": "lockgate://everything/demo://resource/dynamic/text/6"},
        "unknown resource": {"do": "read_resource", "uri": "lockgate://everything/demo://resource/nothing"},
        "resource of nobody": {"do": "read_resource", "uri": "lockgate://nowhere/demo://resource/nothing"},
        "complete prompt": {
            "do": "complete",
            "ref": {"type": "ref/prompt", "name": "everything__completable-prompt"},
            "argument": {"name": "department", "value": "E"},
        },
        "complete template": {
            "do": "complete",
            "ref": {
                "type": "ref/resource",
                "uri": "lockgate://everything/demo://resource/dynamic/text/{resourceId}",
            },
            "argument": {"name": "resourceId", "value": "7"},
        },
        "progress": call(LONG, {"duration": 0.6, "steps": 3}, watch=True),
        "cancel": call(LONG, {"duration": 60, "steps": 600}, watch=True, cancel_after=2),
        "after cancel": call("everything__echo", {"message": "still here"}),
    }


def hold(gateway: RunningGateway, client: Client, tag: str) -> Conversation:
    """Let the client carry out the script."""
    make_repository(gateway, tag)
    steps = script(tag)
    revision, outcomes = talk(gateway, client, tag, steps)
    return Conversation(gateway, tag, revision, outcomes)


def talk(
    gateway: RunningGateway,
    client: Client,
    tag: str,
    steps: Mapping[str, Step],
    answers: Mapping[str, Any] | None = None,
) -> tuple[str, dict[str, dict[str, Any]]]:
    """Let the client carry out steps; gives the revision it chose and what came of each. With `answers` it declares
    that it can be asked, and answers each method with what they hold."""
    asked = {
        "url": f"{gateway.url}/mcp" if client.transport == "http" else None,
        "stdio": gateway.stdio(),
        "mode": client.mode,
        "client": tag,
        "steps": list(steps.values()),
        "answers": answers,
    }
    done = subprocess.run(
        client.argv, input=json.dumps(asked), capture_output=True, text=True, timeout=TALK_S, check=False
    )
    assert done.returncode == 0, done.stderr[-5000:]
    told = json.loads(done.stdout)
    return told["revision"], dict(zip(steps, told["outcomes"], strict=True))


def make_repository(gateway: RunningGateway, name: str) -> None:
    """A Git repository in the volume of the git server, which has no tool to make one: put there by its operator."""
    volume = gateway.state / "volumes" / "git" / "data"
    folder = volume / name
    for command in (
        ("init", "--quiet", "--initial-branch=main", str(folder)),
        ("-C", str(folder), "config", "user.name", "Operator"),
        ("-C", str(folder), "config", "user.email", "operator@example.com"),
    ):
        subprocess.run(["git", *command], check=True)
    (folder / "notes.txt").write_text("to be committed\n")
    owner = volume.stat()
    if owner.st_uid != os.getuid():
        for path in (folder, *folder.rglob("*")):
            os.chown(path, owner.st_uid, owner.st_gid)


def program(name: str) -> str:
    return str(Path(__file__).parent / "clients" / name)
