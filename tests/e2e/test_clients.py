"""Real client libraries of both eras hold one scripted conversation with gateways on containers and on processes.

Knows no wire format: what these clients make of the gateway's answers is what counts.
"""

import base64
import datetime
import json

import pytest

from tests.e2e.conversation import Conversation, hold
from tests.e2e.gateways import STARTER, RunningGateway, eventually
from tests.e2e.programs import python_1, python_2, typescript

AUDITED_S = 10


CLIENTS = {
    "python2-http-legacy": (python_2, "http", "legacy"),
    "python2-http-auto": (python_2, "http", "auto"),
    "python2-stdio-legacy": (python_2, "stdio", "legacy"),
    "python2-stdio-auto": (python_2, "stdio", "auto"),
    "python1-http": (python_1, "http", "legacy"),
    "python1-stdio": (python_1, "stdio", "legacy"),
    "typescript-http-legacy": (typescript, "http", "legacy"),
    "typescript-http-auto": (typescript, "http", "auto"),
    "typescript-stdio-legacy": (typescript, "stdio", "legacy"),
    "typescript-stdio-auto": (typescript, "stdio", "auto"),
}
WITH_PROCESSES = ("python2-http-auto", "python1-stdio", "typescript-http-legacy")
"""Each client library once: what runs the servers and how a client connects have nothing to do with each other."""


@pytest.fixture(
    scope="session",
    params=[
        *(pytest.param(("docker", name), id=f"docker-{name}", marks=pytest.mark.docker) for name in CLIENTS),
        *(pytest.param(("process", name), id=f"process-{name}", marks=pytest.mark.node) for name in WITH_PROCESSES),
    ],
)
def talk(request: pytest.FixtureRequest) -> Conversation:
    """What each client was told by a gateway; held once and looked at by every test below."""
    runtime, name = request.param
    client, transport, mode = CLIENTS[name]
    program = client(transport, mode)
    gateway = request.getfixturevalue(f"{runtime}_gateway")
    assert isinstance(gateway, RunningGateway)
    return hold(gateway, program, f"{client.__name__}_{transport}_{mode}")


def test_a_client_that_looks_for_the_newest_revision_finds_it(talk: Conversation) -> None:
    newest = talk.tag.endswith("auto")
    assert talk.revision == ("2026-07-28" if newest else "2025-11-25")


def test_the_tools_of_all_seven_servers_are_listed_under_names_that_fit(talk: Conversation) -> None:
    tools = talk.result("tools")["tools"]
    names = [tool["name"] for tool in tools]
    assert len(names) == len(set(names)) >= 57
    assert {name.partition("__")[0] for name in names} == set(STARTER)
    assert max(len(name) for name in names) <= 64
    assert all(tool["inputSchema"]["type"] == "object" for tool in tools)


def test_the_time_is_told(talk: Conversation) -> None:
    told = json.loads(talk.text("time"))
    assert told["timezone"] == "Asia/Tokyo"
    age = datetime.datetime.now(datetime.UTC) - datetime.datetime.fromisoformat(told["datetime"])
    assert abs(age) < datetime.timedelta(minutes=15)


def test_a_file_is_written_and_read_back_and_nothing_outside_the_volume_is(talk: Conversation) -> None:
    assert "Successfully wrote" in talk.text("write")
    assert talk.text("read") == f"Grüße, {talk.tag}\n"
    assert talk.result("read outside")["isError"]
    volume = talk.gateway.state / "volumes" / "filesystem" / "data"
    assert (volume / f"{talk.tag}.txt").read_text() == f"Grüße, {talk.tag}\n"


def test_the_graph_remembers(talk: Conversation) -> None:
    assert talk.result("remember")["structuredContent"]["entities"][0]["name"] == talk.tag
    entities = json.loads(talk.text("recall"))["entities"]
    assert {"name": talk.tag, "entityType": "client", "observations": ["speaks MCP"]} in entities


def test_a_thought_is_taken(talk: Conversation) -> None:
    assert talk.result("think")["structuredContent"]["thoughtNumber"] == 1


def test_a_file_is_committed(talk: Conversation) -> None:
    assert "staged" in talk.text("git add")
    assert "committed" in talk.text("git commit")
    assert f"Notes of {talk.tag}" in talk.text("git log")


def test_rows_are_stored_and_found(talk: Conversation) -> None:
    assert talk.text("create") == "Table created successfully"
    assert talk.text("insert") == "[{'affected_rows': 2}]"
    assert talk.text("select") == "[{'word': 'gate'}]"


def test_text_arrives_unchanged(talk: Conversation) -> None:
    assert talk.text("echo") == "Echo: “quoted” \\ \u2028 𝄞"
    assert talk.text("sum") == "The sum of 40 and 2 is 42."


def test_structured_content_arrives_beside_its_text(talk: Conversation) -> None:
    result = talk.result("structured")
    assert json.loads(result["content"][0]["text"]) == result["structuredContent"]
    assert set(result["structuredContent"]) == {"temperature", "conditions", "humidity"}


def test_links_and_embedded_resources_name_resources_that_can_be_read_here(talk: Conversation) -> None:
    links = [block["uri"] for block in talk.result("links")["content"] if block["type"] == "resource_link"]
    assert len(links) == 3
    assert all(uri.startswith("lockgate://everything/demo://resource/dynamic/") for uri in links)
    embedded = [block for block in talk.result("embedded")["content"] if block["type"] == "resource"]
    assert embedded[0]["resource"]["uri"] == "lockgate://everything/demo://resource/dynamic/text/4"


def test_annotations_and_images_arrive(talk: Conversation) -> None:
    text, image = talk.result("annotated")["content"]
    assert text["annotations"] == {"priority": 1, "audience": ["user", "assistant"]}
    assert image["annotations"]["audience"] == ["user"]
    image = next(block for block in talk.result("image")["content"] if block["type"] == "image")
    assert image["mimeType"] == "image/png"
    assert base64.b64decode(image["data"]).startswith(b"\x89PNG")


def test_a_tools_own_error_is_passed_on_and_an_unknown_tool_is_a_protocol_error(talk: Conversation) -> None:
    refused = talk.result("bad arguments")
    assert refused["isError"]
    assert "Invalid arguments for tool get-sum" in refused["content"][0]["text"]
    for label in ("unknown tool", "unknown server"):
        assert talk.error(label)["code"] == -32602
        assert "Unknown tool" in talk.error(label)["message"]


def test_prompts_are_listed_and_filled_in(talk: Conversation) -> None:
    names = {prompt["name"] for prompt in talk.result("prompts")["prompts"]}
    assert names >= {"everything__simple-prompt", "everything__args-prompt", "SQLite__mcp-demo"}
    assert "Oslo" in talk.result("prompt")["messages"][0]["content"]["text"]
    block = talk.result("prompt with resource")["messages"][-1]["content"]
    assert block["resource"]["uri"] == "lockgate://everything/demo://resource/dynamic/text/5"
    assert talk.error("unknown prompt")["code"] == -32602


def test_resources_are_listed_and_read(talk: Conversation) -> None:
    uris = {resource["uri"] for resource in talk.result("resources")["resources"]}
    assert uris >= {"lockgate://SQLite/memo://insights", "lockgate://memory/memory://knowledge-graph"}
    templates = {template["uriTemplate"] for template in talk.result("templates")["resourceTemplates"]}
    assert "lockgate://everything/demo://resource/dynamic/text/{resourceId}" in templates
    static, dynamic = (talk.result(f"{kind} resource")["contents"][0] for kind in ("static", "dynamic"))
    assert static["uri"] in uris
    assert len(static["text"]) > 100
    assert dynamic["uri"] == "lockgate://everything/demo://resource/dynamic/text/6"
    assert dynamic["text"].startswith("Resource 6:")
    for label in ("unknown resource", "resource of nobody"):
        assert talk.error(label)["code"] in (-32002, -32602)


def test_arguments_are_completed(talk: Conversation) -> None:
    assert talk.result("complete prompt")["completion"]["values"] == ["Engineering"]
    assert talk.result("complete template")["completion"]["values"] == ["7"]


def test_ping_and_log_levels_exist_in_the_handshake_era_only(talk: Conversation) -> None:
    if talk.revision == "2026-07-28":
        assert talk.answers["ping"] == talk.answers["log level"] == {"absent": "2026-07-28"}
    else:
        assert talk.result("ping") == talk.result("log level") == {}


def test_progress_arrives_before_the_answer(talk: Conversation) -> None:
    progress = talk.answers["progress"]["progress"]
    if talk.tag.startswith("typescript_stdio"):
        # This client forgets a call when its answer comes, and with it progress that came a moment before: over
        # stdio the two arrive together. It does so without a gateway in between, too.
        assert progress[:2] == [1, 2]
    else:
        assert progress == [1, 2, 3]
    assert "completed" in talk.text("progress")


def test_a_cancelled_call_ends_at_once_and_the_connection_goes_on(talk: Conversation) -> None:
    answer = talk.answers["cancel"]
    assert answer.get("cancelled"), answer
    assert answer["progress"][:2] == [1, 2]
    assert talk.text("after cancel") == "Echo: still here"
    record = eventually(
        "the cancelled call is in the audit file",
        lambda: [line for line in talk.audited("cancel") if line["outcome"] == "cancelled"],
        AUDITED_S,
    )[0]
    assert record["ms"] < 30_000
    assert talk.gateway.server("everything")["in_flight"] == 0


def test_every_call_is_audited_under_the_clients_own_name(talk: Conversation) -> None:
    for label in ("time", "write", "recall", "think", "git log", "select", "sum"):
        record = talk.audited(label)[0]
        server, _, tool = record["name"].partition("__")
        assert (record["server"], record["item"], record["outcome"]) == (server, tool, "ok")
        assert record["policies"] == [f"profile:starter:{server}", "open:everything"]
    assert [line["outcome"] for line in talk.audited("read outside")] == ["ok", "tool_error"]
    assert talk.audited("unknown tool")[0]["outcome"] == "unknown"
