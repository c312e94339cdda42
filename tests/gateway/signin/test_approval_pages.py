"""Calls that wait, decided by people in a browser: who sees which, and which forms count."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from gateway.approvals import Approval, Approver
from gateway.signin.accounts import Accounts
from tests.e2e.gateways import missing
from tests.gateway.auth.test_guard import bearer
from tests.gateway.running import Place, running
from tests.gateway.signin.browser import PASSWORD, Browser, Program
from tests.gateway.signin.test_strangers import folder, script
from tests.servers import until

pytestmark = pytest.mark.anyio

PAGE = "/oauth/approvals"
POLICY = """permit (principal, action, resource);
@effect("ask") @approver("group:ops") @reason("<b>it</b> writes")
permit (principal, action == Action::"call", resource is Tool) unless { resource.readOnly };"""
WRITE = {"name": "a__write", "arguments": {"path": "/x", "text": "<script>alert(1)</script>\u202e" + "y" * 3000}}
ADMIN = Approver("root", "page", is_admin=True)


@asynccontextmanager
async def waiting(tmp_path: Path) -> AsyncIterator[tuple[Place, Approval, asyncio.Task[Any]]]:
    """A gateway with people, and a call of alice's client that waits."""
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "mine.cedar").write_text(POLICY)
    profiles = {"all": {"servers": ["a"], "policy": "mine"}}
    async with running(tmp_path, {"a": ["cabinet"]}, profiles, auth="accounts") as place:
        accounts = Accounts(place.gateway.database)
        await accounts.create("alice", PASSWORD, groups=["staff"])
        await accounts.create("olga", PASSWORD, groups=["ops"])
        await accounts.create("root", PASSWORD, is_admin=True)
        program = Program(place.url)
        await program.register()
        tokens = await program.tokens(Browser(place.url))
        session = await place.session(always=[bearer(tokens["access_token"])])
        async with asyncio.TaskGroup() as group:
            call = group.create_task(session.result("tools/call", WRITE))
            approvals = place.gateway.door.approvals
            await until(lambda: approvals.waiting(ADMIN), "it waits")
            (one,) = approvals.waiting(ADMIN)
            yield place, one, call
            for left in approvals.waiting(ADMIN):
                approvals.decide(left.id, False, ADMIN)


async def test_somebody_of_the_named_group_approves_and_nobody_else_sees_it(tmp_path: Path) -> None:
    async with waiting(tmp_path) as (place, one, call):
        alice, olga = Browser(place.url), Browser(place.url)
        listed = await alice.login(PAGE, "alice")
        assert "No call waits" in listed.body.decode()
        assert (await alice.get(f"{PAGE}/{one.id}")).status == 404
        listed = await olga.login(PAGE, "olga")
        assert f'href="{PAGE}/{one.id}"' in listed.body.decode()
        page = await olga.get(f"{PAGE}/{one.id}")
        html = page.body.decode()
        assert "<b>it" not in html
        assert "<script" not in html
        assert "&lt;b&gt;it&lt;/b&gt; writes" in html
        assert "alert(1)" in html
        assert r"\u{202e}" in html
        assert "y" * 3000 not in html
        assert "y" * 3000 in (await olga.get(f"{PAGE}/{one.id}?full=1")).body.decode()
        for header in ("content-security-policy", "x-frame-options", "cache-control"):
            assert header in page.headers
        done = await olga.submit(page, f"{PAGE}/{one.id}", answer="approve")
        assert "is approved" in done.body.decode() or "is used" in done.body.decode()
        await until(call.done, "it was made")
        assert json.loads(call.result()["content"][0]["text"]) == WRITE["arguments"]
        assert one.by == "user:olga (page)"
        assert "already" in (await olga.get(f"{PAGE}/{one.id}")).body.decode()


@pytest.mark.sec("SEC-039")
async def test_only_the_form_of_this_very_page_and_browser_counts_and_only_once(tmp_path: Path) -> None:
    async with waiting(tmp_path) as (place, one, _):
        olga, root, target = Browser(place.url), Browser(place.url), f"{PAGE}/{one.id}"
        assert (await olga.get(target)).headers["location"] == f"/oauth/login?next=%2Foauth%2Fapprovals%2F{one.id}"
        assert (await olga.post(target, {"answer": "approve"})).status == 403
        page = await olga.login(target, "olga")
        await root.login(PAGE, "root")
        ticket = unescape(page.body.decode().partition('name="ticket" value="')[2].partition('"')[0])
        assert ticket
        for browser, where, fields in (
            (olga, target, {"answer": "approve"}),
            (olga, target, {"answer": "approve", "ticket": "x"}),
            (olga, f"{PAGE}/0123456789abcdef", {"answer": "approve", "ticket": ticket}),
            (olga, target, {"answer": "approve", "ticket": ticket}),  # spent by the try before
        ):
            assert (await browser.post(where, fields)).status == 403, fields
        other = await olga.get(target)
        assert (await root.submit(other, target, answer="approve")).status == 403
        assert (await olga.submit(await olga.get(target), target, answer="perhaps")).status == 400
        foreign = await olga.post(target, {"answer": "approve", "ticket": "x"}, ("Origin", "https://evil.example"))
        assert foreign.status == 403
        assert one.state == "pending"
        assert (await root.submit(await root.get(target), target, answer="deny")).status == 200
        assert one.state == "denied"


@pytest.mark.node
async def test_a_real_browser_approves_without_scripts(tmp_path: Path, cache_dir: Path) -> None:
    installed = folder("oauth", "puppeteer-core", cache_dir)
    chromium = shutil.which("chromium")
    if chromium is None:
        missing("there is no chromium")
    async with waiting(tmp_path) as (place, one, call):
        fields = json.dumps({"name": "olga", "password": PASSWORD})
        async with script("approval.mjs", installed, chromium, place.url + PAGE, fields) as browser:
            seen = await browser.hear()
        titles = ["Sign in", "Calls that wait for you", "Approve this call?", "Settled", "Calls that wait for you"]
        assert seen["titles"] == [f"{title} · Lockgate" for title in titles]
        assert seen["outside"] == []
        assert ["heading", "Approve this call?"] in seen["names"]
        assert {"Approve this call", "Refuse it"} <= {name for role, name in seen["names"] if role == "button"}
        await until(call.done, "it was made")
        assert not call.result().get("isError")
        assert one.by == "user:olga (page)"
