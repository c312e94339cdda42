"""Content guards in a gateway: on arguments and on everything a server says, in each mode."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from catalog import CatalogInvalid, load_catalog
from gateway.guarding import META
from tests.gateway.callers import Session
from tests.gateway.running import Place, running
from tests.gateway.test_modern import post
from tests.servers import LOCAL, write_catalog

pytestmark = pytest.mark.anyio

KEY = "ghp_" + "aB3dE5gH7jK9mN1pQ3sT5vX7zA9bC1dE3fG5"
MAIL = "anna.schmidt@firma.de"


def server(**guards: Any) -> dict[str, Any]:
    return {"package": LOCAL, "command": ["mouthy"], "guards": guards}


def found(place: Place) -> tuple[str, ...]:
    return tuple(place.audit()[-1]["guards"])


async def result(session: Session, tool: str, text: str) -> Any:
    return await session.result("tools/call", {"name": tool, "arguments": {"text": text}})


async def test_without_a_word_of_the_entry_texts_pass_unchanged_and_are_noted(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": ["mouthy"]}) as place:
        session = await place.session()
        plain = await result(session, "a__say", "nothing to see")
        assert "_meta" not in plain
        assert "guards" not in place.audit()[-1] or found(place) == ()
        odd = await result(session, "a__say", f"x\u202ey \x1b[1m {KEY} {MAIL}")
        assert odd["content"][0]["text"] == f"x\u202ey \x1b[1m {KEY} {MAIL}"
        assert odd["_meta"][META] == {"hidden": 1, "escapes": 1}
        notes = found(place)
        assert "results: secrets warn 1" in notes
        assert "arguments: secrets warn 1" in notes
        assert KEY not in json.dumps(place.audit())


async def test_replaced_in_results_of_all_kinds(tmp_path: Path) -> None:
    results = dict.fromkeys(("secrets", "personal", "hidden", "escapes", "markup"), "redact")
    async with running(tmp_path, {"a": server(results=results)}) as place:
        session = await place.session()
        assert (
            await session.call("a__say", {"text": f"{KEY} {MAIL}"}) == "[GitHub token removed] [mail address removed]"
        )
        assert await session.failure("a__fail", {"text": f"no: {KEY}"}) == "no: [GitHub token removed]"
        structured = await result(session, "a__structured", f"is {KEY}")
        assert structured["structuredContent"] == {"text": "is [GitHub token removed]"}
        kept = await session.failure("a__tight", {"text": f"{KEY}"})
        assert "GitHub token" in kept
        assert KEY not in kept
        assert place.audit()[-1]["outcome"] == "kept_back"
        svg = (await result(session, "a__picture", "<svg onload='x()'/>"))["content"][0]
        assert svg == {"type": "text", "text": "[removed by the gateway: event handler in a picture]"}
        await session.call("a__say", {"text": f"<script src='https://evil.test/x'></script>{KEY}"})
        (uri,) = [one["uri"] for one in (await session.result("resources/list"))["resources"]]
        page = (await session.result("resources/read", {"uri": uri}))["contents"][0]
        assert (page["mimeType"], page["text"]) == (
            "text/plain",
            "[removed by the gateway: loads from an unlisted host]",
        )
        prompt = await session.result("prompts/get", {"name": "a__kept"})
        assert KEY not in json.dumps(prompt)
        assert place.audit()[-1]["guards"][0] == "results: secrets redact 1"


async def test_replaced_on_the_way_of_a_call(tmp_path: Path) -> None:
    servers = {"a": server(results={"secrets": "redact"}), "b": server(results={"secrets": "block"})}
    async with running(tmp_path, servers) as place:
        session = await place.session()
        async with session.calling("a__report", {"text": f"at {KEY}"}) as stream:
            told = await stream.until("notifications/progress")
            assert told["params"]["message"] == "at [GitHub token removed]"
        answer = await session.post(
            json.dumps(
                {
                    "jsonrpc": "2.0", "id": 9, "method": "tools/call",
                    "params": {"name": "b__report", "arguments": {"text": KEY}, "_meta": {"progressToken": 1}},
                }
            ).encode()
        )  # fmt: skip
        assert KEY.encode() not in answer.body
        assert "Kept back" in answer.messages()[-1]["result"]["content"][0]["text"]


async def test_arguments_are_replaced_or_refused_before_the_server_hears_them(tmp_path: Path) -> None:
    servers = {
        "a": server(arguments={"secrets": "redact", "personal": "redact"}),
        "b": server(arguments={"secrets": "block"}),
    }
    async with running(tmp_path, servers) as place:
        session = await place.session()
        await session.call("a__say", {"text": f"{KEY} of {MAIL}", "more": [{"deep": KEY}]})
        heard = json.loads(await session.call("a__heard"))
        assert heard == {
            "text": "[GitHub token removed] of [mail address removed]", "more": [{"deep": "[GitHub token removed]"}]
        }  # fmt: skip
        await session.call("b__say", {"text": "before"})
        refused = await session.failure("b__say", {"text": KEY})
        assert "GitHub token" in refused
        assert KEY not in refused
        assert (place.audit()[-1]["outcome"], place.audit()[-1]["detail"]) == ("denied", "guard: secrets")
        assert json.loads(await session.call("b__heard")) == {"text": "before"}
        spelled = "".join(f"\\u{ord(c):04x}" for c in KEY)
        body = '{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"b__say","arguments":{"text":"' + spelled
        assert (await session.post((body + '"}}}').encode())).messages()[-1]["result"]["isError"]
        modern = await post(place, "tools/call", {"name": "b__say", "arguments": {"text": KEY}})
        assert modern.messages()[-1]["result"]["isError"]
        assert json.loads(await session.call("b__heard")) == {"text": "before"}


@pytest.mark.sec("SEC-091")
async def test_a_secret_of_one_server_does_not_go_to_another(tmp_path: Path) -> None:
    secret = "correct horse battery"
    keeper = {
        "package": LOCAL, "command": ["mouthy"],
        "secrets": [{"name": "keeper.key", "env": "KEY"}],
    }  # fmt: skip
    folder = tmp_path / "secrets"
    folder.mkdir(mode=0o700)
    (folder / "keeper.key").write_text(secret)
    (folder / "keeper.key").chmod(0o600)
    other = server(arguments={"secrets": "block"})
    async with running(tmp_path, {"keeper": keeper, "other": other}, secrets_dir=folder) as place:
        session = await place.session()
        await session.call("keeper__say", {"text": "start"})
        for form in (secret, base64.b64encode(secret.encode()).decode(), secret.encode().hex()):
            assert "known secret" in await session.failure("other__say", {"text": f"it is {form}"})


@pytest.mark.sec("SEC-087")
async def test_results_have_an_end(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": server(results={"max_bytes": 4096, "max_items": 10})}) as place:
        session = await place.session()
        cut = await result(session, "a__say", "x" * 9000)
        assert len(cut["content"][0]["text"]) <= 4096
        assert cut["content"][-1]["text"].startswith("[cut here")
        assert len((await result(session, "a__many", "x"))["content"]) == 11
        assert "too many bytes" in await session.failure("a__structured", {"text": "x" * 9000})


async def test_what_an_entry_says_of_guards_is_checked(tmp_path: Path) -> None:
    for wrong, word in (
        ({"results": {"secrets": "hide"}}, "redact"),
        ({"arguments": {"markup": "block"}}, "markup"),
        ({"results": {"max_bytes": 1}}, "1024"),
    ):
        path = write_catalog(tmp_path / "catalog.yaml", {"a": server(**wrong)})
        with pytest.raises(CatalogInvalid, match=word):
            load_catalog(path)


async def test_guards_follow_a_reload(tmp_path: Path) -> None:
    async with running(tmp_path, {"a": ["mouthy"]}) as place:
        session = await place.session()
        assert await session.call("a__say", {"text": KEY}) == KEY
        write_catalog(tmp_path / "catalog.yaml", {"a": server(results={"secrets": "redact"})})
        token = [("Authorization", f"Bearer {place.service.running.admin_token}")]
        assert (await place.http.request("POST", "/admin/catalog/reload", headers=token)).status == 200
        assert await session.call("a__say", {"text": KEY}) == "[GitHub token removed]"
