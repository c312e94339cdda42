"""Every client library in every era it speaks, with every kind of server, through one gateway.

Knows what each server offers; what the client libraries make of the answers is what counts.
"""

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conformance import fixture
from tests.conformance.front import remote_entry
from tests.e2e import catalogs
from tests.e2e.conversation import LONG, Step, talk
from tests.e2e.gateways import RunningGateway, eventually
from tests.e2e.programs import inspector, python_1, python_2, typescript

pytestmark = pytest.mark.node

NEWEST = "2026-07-28"
LEGACY = "2025-11-25"
CLIENTS = {
    "python2-legacy": (python_2, "legacy", LEGACY),
    "python2-auto": (python_2, "auto", NEWEST),
    "python2-pinned": (python_2, NEWEST, NEWEST),
    "python1": (python_1, "legacy", LEGACY),
    "typescript-legacy": (typescript, "legacy", LEGACY),
    "typescript-auto": (typescript, "auto", NEWEST),
    "typescript-pinned": (typescript, {"pin": NEWEST}, NEWEST),
}
"""Each with the revision it has to end up with."""
STARTERS = ("time", "filesystem", "memory", "sequentialthinking", "SQLite")
FIXTURES = {"old": "legacy", "new": "modern"}
"""The conformance fixture over HTTP, in either era."""
SERVERS = (*STARTERS, "everything", *FIXTURES)
ANSWERS = {
    "elicitation/create": {"action": "accept", "content": {"name": "Ada", "username": "ada", "email": "ada@host.test"}},
    "sampling/createMessage": {
        "role": "assistant",
        "content": {"type": "text", "text": "Paris, I think"},
        "model": "small",
        "stopReason": "endTurn",
    },
    "roots/list": {"roots": [{"uri": "file:///work/of/ada", "name": "work"}]},
}
ASKS = "trigger-elicitation-request"
LISTED_S = 120
INSPECT_S = 120


class Use(NamedTuple):
    """How a tool, prompt or resource of a server is used, and a part of the answer."""

    step: Step
    said: str


def tool(name: str, said: str, **arguments: Any) -> Use:
    return Use({"do": "call_tool", "name": name, "arguments": arguments}, said)


def prompt(name: str, said: str, **arguments: str) -> Use:
    return Use({"do": "get_prompt", "name": name, "arguments": arguments}, said)


def resource(uri: str, said: str) -> Use:
    return Use({"do": "read_resource", "uri": uri}, said)


USES = {
    "time": tool("time__get_current_time", "Asia/Tokyo", timezone="Asia/Tokyo"),
    "filesystem": tool("filesystem__list_allowed_directories", "/data"),
    "memory": tool("memory__read_graph", "entities"),
    "memory resource": resource("lockgate://memory/memory://knowledge-graph", "entities"),
    "sequentialthinking": tool(
        "sequentialthinking__sequentialthinking",
        "thoughtNumber",
        thought="First this.",
        thoughtNumber=1,
        totalThoughts=2,
        nextThoughtNeeded=True,
    ),
    "SQLite": tool("SQLite__list_tables", "["),
    "SQLite resource": resource("lockgate://SQLite/memo://insights", "insights"),
    "SQLite prompt": prompt("SQLite__mcp-demo", "canals", topic="canals"),
    "everything": tool("everything__echo", "Echo: across", message="across"),
    "everything resource": resource("lockgate://everything/demo://resource/dynamic/text/6", "Resource 6:"),
    "everything prompt": prompt("everything__args-prompt", "Oslo", city="Oslo"),
    **{
        f"{id}{kind}": use
        for id in FIXTURES
        for kind, use in {
            "": tool(f"{id}__test_simple_text", "simple text"),
            " resource": resource(f"lockgate://{id}/test://static-text", "text"),
            " prompt": prompt(f"{id}__test_prompt_with_arguments", "canals", arg1="canals", arg2="locks"),
        }.items()
    },
}
"""At least one tool of each server, and a prompt and a resource where it has them."""
QUESTIONS = {
    "everything elicitation": tool("everything__trigger-elicitation-request", "Ada"),
    "everything sampling": tool(
        "everything__trigger-sampling-request", "Paris, I think", prompt="Which city?", maxTokens=20
    ),
    "everything roots": tool("everything__get-roots-list", "file:///work/of/ada"),
    **{
        f"{id} {kind}": use
        for id in FIXTURES
        for kind, use in {
            "elicitation": tool(f"{id}__test_elicitation", "ada@host.test", message="Who?"),
            "sampling": tool(f"{id}__test_sampling", "Paris, I think", prompt="Which city?"),
            "roots": tool(f"{id}__test_input_required_result_list_roots", "file:///work/of/ada"),
        }.items()
    },
}
"""Tools that ask the client in the middle of their call."""
WATCHED: Mapping[str, Step] = {
    "everything progress": {"do": "call_tool", "name": LONG, "arguments": {"duration": 0.3, "steps": 3}, "watch": True},
    **{
        f"{id} progress": {"do": "call_tool", "name": f"{id}__test_tool_with_progress", "arguments": {}, "watch": True}
        for id in FIXTURES
    },
    "cancel": {
        "do": "call_tool",
        "name": LONG,
        "arguments": {"duration": 60, "steps": 600},
        "watch": True,
        "cancel_after": 2,
    },
    "after cancel": USES["everything"].step,
}
STEPS: Mapping[str, Step] = {
    **{f"list {what}": {"do": f"list_{what}"} for what in ("tools", "prompts", "resources", "templates")},
    **{label: use.step for label, use in {**USES, **QUESTIONS}.items()},
    **WATCHED,
}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """Serves the starter servers as processes, one of which may ask questions, and the fixture over HTTP."""
    folder = tmp_path_factory.mktemp("matrix")
    with ExitStack() as stack:
        servers = {id: catalogs.shipped(id) for id in STARTERS}
        servers["everything"] = catalogs.shipped("everything", interactive=True)
        for id, era in FIXTURES.items():
            url = stack.enter_context(fixture.serving(era, folder / f"{id}.log"))
            servers[id] = remote_entry(url, interactive=era == "legacy")
        catalog = catalogs.write(folder / "catalog.yaml", servers)
        one = stack.enter_context(RunningGateway(folder / "state", runtime="process", catalog=catalog))
        one.wait_until_learnt(SERVERS)
        listed = one.state / "listings" / "everything.json"
        eventually("it lists what it offers to those it can ask", lambda: ASKS in listed.read_text(), LISTED_S)
        yield one


class Told(NamedTuple):
    """What one client was told."""

    client: str
    revision: str
    outcomes: dict[str, dict[str, Any]]

    def result(self, label: str) -> Any:
        assert "result" in self.outcomes[label], f"{label}: {self.outcomes[label]}"
        return self.outcomes[label]["result"]


@pytest.fixture(scope="module", params=list(CLIENTS))
def told(request: pytest.FixtureRequest, gateway: RunningGateway) -> Told:
    program, mode, _ = CLIENTS[request.param]
    revision, outcomes = talk(gateway, program("http", mode), request.param, STEPS, ANSWERS)
    return Told(request.param, revision, outcomes)


def test_a_client_speaks_the_revision_it_was_told_to(told: Told) -> None:
    assert told.revision == CLIENTS[told.client][2]


def test_the_tools_of_every_server_are_listed(told: Told) -> None:
    names = [tool["name"] for tool in told.result("list tools")["tools"]]
    assert {name.partition("__")[0] for name in names} == set(SERVERS)
    assert len(names) == len(set(names))
    assert told.result("list templates")["resourceTemplates"]


@pytest.mark.parametrize("label", [*USES, *QUESTIONS])
def test_what_a_server_offers_can_be_used_and_what_it_asks_is_answered(told: Told, label: str) -> None:
    result = told.result(label)
    assert not result.get("isError"), result
    assert {**USES, **QUESTIONS}[label].said in json.dumps(result, ensure_ascii=False)


@pytest.mark.parametrize("server", ["everything", *FIXTURES])
def test_progress_is_reported(told: Told, server: str) -> None:
    told.result(f"{server} progress")
    progress = told.outcomes[f"{server} progress"]["progress"]
    assert len(progress) >= 2
    assert progress == sorted(set(progress))


def test_a_withdrawn_call_ends_and_the_next_one_works(told: Told) -> None:
    assert told.outcomes["cancel"].get("cancelled"), told.outcomes["cancel"]
    assert not told.result("after cancel").get("isError")


# -- the inspector -------------------------------------------------------------------------------


def _inspect(config: Path, era: str, step: Step) -> tuple[int, str]:
    """One run of the inspector's command line: exit code and what it printed."""
    argv = [*inspector(), "--config", str(config), "--server", era, "--format", "json"]
    match step["do"]:
        case "call_tool":
            argv += ["--method", "tools/call", "--tool-name", step["name"]]
            argv += [f"--tool-arg={key}={json.dumps(value)}" for key, value in step["arguments"].items()]
        case "get_prompt":
            argv += ["--method", "prompts/get", "--prompt-name", step["name"]]
            argv += [f"--prompt-args={key}={value}" for key, value in step["arguments"].items()]
        case "read_resource":
            argv += ["--method", "resources/read", "--uri", step["uri"]]
        case listing:
            argv += ["--method", listing.replace("list_", "") + "/list"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=INSPECT_S, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def config(gateway: RunningGateway, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The gateway as a server of the inspector's, once for each era."""
    path = tmp_path_factory.mktemp("inspector") / "mcp.json"
    server = {"type": "streamable-http", "url": f"{gateway.url}/mcp"}
    eras = {era: {**server, "protocolEra": era} for era in ("legacy", "modern")}
    path.write_text(json.dumps({"mcpServers": eras}))
    return path


@pytest.mark.parametrize("era", ["legacy", "modern"])
@pytest.mark.parametrize("label", ["list tools", *USES])
def test_the_inspector_can_use_what_a_server_offers(config: Path, era: str, label: str) -> None:
    code, printed = _inspect(config, era, STEPS[label])
    assert code == 0, printed
    if label == "list tools":
        assert all(f'"{server}__' in printed for server in SERVERS)
    else:
        assert USES[label].said in printed
