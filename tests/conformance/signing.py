"""Signing in during client scenarios: a gateway before the suite's server, and a browser without a screen.

Knows the gateway's connect pages and that a scenario's tools are to be called; what it looks at is the suite's matter.

The first link is made as `lockgate oauth connect` makes it, as a server that nobody signed in for lists no tools; so is
one more while there are none. Every other link stands on the page that ends a sign-in, or in the error of a tool.

`python -m tests.conformance.signing` plays scenario after scenario, each with a gateway of its own in this one process:
starting a program for each would cost more than the scenarios. The suite's command is `signing_command.py`.
"""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import re
import sys
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import anyio
import mcp_types as types
from anyio import to_thread
from mcp import Client
from mcp.shared.exceptions import MCPDeprecationWarning

from tests.conformance import front
from tests.conformance.process import Background
from tests.conformance.suite import SCENARIO_TIMEOUT_S
from tests.gateway.running import running

PREFIX: Final = "auth/"
MODERN: Final = "2026-07-28"
PLAY_S: Final = SCENARIO_TIMEOUT_S * 0.75
"""Before the suite ends the command."""
WAIT_S: Final = SCENARIO_TIMEOUT_S / 4
"""For one step of the browser."""
BY_HAND: Final = 2
"""How often somebody connects by the command at most: once more where no tool is listed after the first time."""
LINK: Final = re.compile(r"http://[^ ]+/connect/[\w-]+")
COMMAND: Final = Path(__file__).with_name("signing_command.py")


class NotSignedIn(Exception):
    """The gateway did not sign in; says why, in the words of its page."""


@dataclass(frozen=True)
class Seen:
    """An answer in the browser."""

    status: int
    headers: Mapping[str, str]
    text: str


def follow(link: str) -> str | None:
    """Open the link, press the button, let the provider agree, and come back with the cookie; a further link, if there
    is one on the last page.

    Raises:
        NotSignedIn: a page says that it will not be.
    """
    own = urlsplit(link)
    shown = _visit("GET", link, {})
    if shown.status != 200:
        raise NotSignedIn(shown.text)
    pressed = _visit("POST", link, {"Origin": f"{own.scheme}://{own.netloc}"})
    if pressed.status != 303:
        raise NotSignedIn(pressed.text)
    agreed = _visit("GET", pressed.headers["location"], {})
    if agreed.status not in (302, 303):
        raise NotSignedIn(f"the provider answers {agreed.status}: {agreed.text}")
    cookie = pressed.headers["set-cookie"].partition(";")[0]
    back = _visit("GET", agreed.headers["location"], {"Cookie": cookie})
    if back.status != 200:
        raise NotSignedIn(back.text)
    further = LINK.search(back.text)
    if further is None and "can be used now" not in back.text:
        raise NotSignedIn(back.text)
    return further[0] if further else None


def _visit(method: str, url: str, headers: Mapping[str, str]) -> Seen:
    """One request, whose redirect is not followed."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=WAIT_S)
    try:
        connection.request(method, f"{parts.path}?{parts.query}" if parts.query else parts.path, headers=dict(headers))
        answer = connection.getresponse()
        text = answer.read().decode(errors="replace")
        return Seen(answer.status, {name.lower(): value for name, value in answer.getheaders()}, text)
    finally:
        connection.close()


def _first_link(running: Mapping[str, Any]) -> str:
    url = f"{running['url']}/admin/oauth/{front.SERVER}/connect?{urlencode({'user': 'local'})}"
    headers = {"Authorization": f"Bearer {running['admin_token']}"}
    with urllib.request.urlopen(urllib.request.Request(url, b"", headers), timeout=WAIT_S) as answer:
        link: str = json.loads(answer.read())["url"]
    return link


async def use(url: str, mode: Any, running: Mapping[str, Any]) -> None:
    """Sign in, list the tools and call each, following what the gateway asks for.

    Raises:
        NotSignedIn: the gateway refuses, or a tool has an error that leads to no link.
    """
    names: list[str] = []
    for attempt in range(BY_HAND):
        await _follow(await to_thread.run_sync(_first_link, running))
        async with Client(url, mode=mode) as client:  # a new one, as the library keeps listings
            names = [tool.name for tool in (await client.list_tools()).tools]
        print(f"signed in {attempt + 1}; listed: {', '.join(names)}", flush=True)
        if names:
            break
    else:
        raise NotSignedIn("the server lists no tools")
    async with Client(url, mode=mode) as client:
        for name in names:
            while (text := await _error(client, name)) is not None:
                found = LINK.search(text)
                if found is None:
                    raise NotSignedIn(text)
                print(f"{name}: {text}", flush=True)
                await _follow(found[0])


async def _follow(link: str | None) -> None:
    """As far as the gateway gives links: it is the gateway that has to end a loop."""
    while link is not None:
        link = await to_thread.run_sync(follow, link)


async def _error(client: Client, name: str) -> str | None:
    result = await client.call_tool(name, {})
    assert isinstance(result, types.CallToolResult)
    if not result.is_error:
        return None
    return " ".join(block.text for block in result.content if isinstance(block, types.TextContent))


async def play(asked: Mapping[str, Any]) -> None:
    """One scenario at the URL of the suite's server, in the era of the revision.

    Raises:
        NotSignedIn: see `use`.
    """
    entry = {**front.remote_entry(asked["url"], interactive=False), "oauth": {"provider": "suite"}}
    profile = {"servers": [front.SERVER], "plain_names": True}
    with TemporaryDirectory(prefix="lockgate-signing-") as folder, anyio.fail_after(PLAY_S):
        async with running(Path(folder), {front.SERVER: entry}, {"all": profile}, vault_key="file") as place:
            for name in ("client_id", "client_secret"):
                if name in asked["context"]:
                    await place.gateway.vault.put(f"{front.SERVER}.{name}", asked["context"][name].encode())
            found = {"url": place.url, "admin_token": place.service.running.admin_token}
            await use(f"{place.url}/mcp", MODERN if asked["revision"] == MODERN else "legacy", found)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A line of JSON that says what to play; the exit status and what there is to print."""
    said, status = StringIO(), 0
    try:
        with redirect_stdout(said):
            await play(json.loads(await reader.readline()))
    except NotSignedIn as exc:
        said.write(f"not signed in: {exc}")
        status = 1
    except Exception as exc:  # noqa: BLE001  # whatever it is, the scenario fails and the next one goes on
        said.write(f"it broke: {exc!r}")
        status = 2
    writer.write(f"{status}\n{said.getvalue()}".encode())
    await writer.drain()
    writer.close()


async def _serve() -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    print(f"PORT={server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


@contextmanager
def playing(log: Path) -> Iterator[str]:
    """This module as a process, for the length of the body; gives the command for the suite."""
    argv = [sys.executable, "-m", "tests.conformance.signing"]
    env = {**os.environ, "PYTHONPATH": str(front.ROOT)}
    with Background("the one who signs in", argv, log, env) as program:
        port = program.wait_for("port", lambda: program.line_after("PORT="), front.READY_S)
        yield f"{sys.executable} -I -S {COMMAND} {port}"


if __name__ == "__main__":
    warnings.simplefilter("ignore", MCPDeprecationWarning)
    asyncio.run(_serve())
