"""Rules that bind every catalogue: which entries they refuse, what the commands say of it, and a gateway that obeys."""

import json
from pathlib import Path
from typing import Any

import anyio
import pytest
from typer.testing import CliRunner, Result

from catalog import CatalogInvalid, Entry, load_rules
from gateway.cli import app
from gateway.errors import ImageRefused
from gateway.gateway import Gateway
from gateway.images.names import parse
from gateway.images.verifier import Verifier
from gateway.rulebook import Rulebook, open_rulebook
from tests.catalog.files import BOX, IMAGE, document
from tests.gateway.running import running
from tests.servers import DEADLINE_S, LOCAL, until, write_catalog
from tests.servers import settings as settings_of

PEM = "-----BEGIN PUBLIC KEY-----\nMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE\n-----END PUBLIC KEY-----\n"
ACME = f"publishers: {{acme: {{images: [ghcr.io/acme/*], keys: [{json.dumps(PEM)}]}}}}\n"


def entry(**members: Any) -> Entry:
    return Entry.model_validate({"id": "box", "title": "Box", "description": "Keeps things.", **members})


IMAGED = entry(image="ghcr.io/acme/box:1")
PACKAGED = entry(package={"ecosystem": "npm", "name": "@acme/box", "version": "1.2.3"}, command=["box"])
REMOTE = entry(remote={"url": "https://mcp.acme.com/mcp"})
BOTH = entry(image="ghcr.io/acme/box:1", package={"ecosystem": "pypi", "name": "box", "version": "1"}, command=["box"])
ONLINE = entry(image="ghcr.io/acme/box:1", network="internet")
PER_CALL = entry(per_call=[{"name": "run", "description": "Runs.", "image": "docker.io/acme/run:1"}])


def book(folder: Path, text: str) -> Rulebook:
    path = folder / "rules.yaml"
    path.write_text(f"version: 1\n{text}")
    return Rulebook(path, load_rules(path))


@pytest.mark.parametrize(
    ("rules", "judged", "rule"),
    [
        ("", BOTH, ""),
        ("allow: {registries: [ghcr.io/acme/*]}", IMAGED, ""),
        ("allow: {registries: [docker.io/*]}", IMAGED, "allow.registries"),
        ("allow: {registries: []}", IMAGED, "allow.registries"),
        ("allow: {registries: []}", PACKAGED, ""),
        ("allow: {registries: [ghcr.io/*]}", PER_CALL, "allow.registries"),
        ("allow: {packages: ['npm:@acme/*']}", PACKAGED, ""),
        ("allow: {packages: [pypi]}", PACKAGED, "allow.packages"),
        ("allow: {packages: []}", BOTH, "allow.packages"),
        ("allow: {remotes: ['*.acme.com']}", REMOTE, ""),
        ("allow: {remotes: [acme.com]}", REMOTE, "allow.remotes"),
        ("allow: {networks: [none]}", ONLINE, "allow.networks"),
        ("allow: {networks: [none]}", IMAGED, ""),
        ("allow: {networks: []}", REMOTE, ""),
        (f"allow: {{publishers: [acme]}}\n{ACME}", IMAGED, ""),
        (f"allow: {{publishers: [acme]}}\n{ACME}", PER_CALL, "allow.publishers"),
        (f"allow: {{publishers: []}}\n{ACME}", IMAGED, "allow.publishers"),
        ("signed: ['*']", IMAGED, "signed"),
        (f"signed: ['*']\n{ACME}", IMAGED, ""),
        ("block: [{entry: box, reason: Too old.}]", IMAGED, "block"),
        ("block: [{image: ghcr.io/acme/*, reason: Too old.}]", IMAGED, "block"),
        ("block: [{image: ghcr.io/acme/*, reason: Too old.}]", entry(image="ghcr.io:443/acme/box:1"), "block"),
        ("block: [{image: acme/box, reason: Too old.}]", entry(image="registry.hub.docker.com/acme/box:1"), "block"),
        ("block: [{image: redis, reason: Too old.}]", entry(image="redis:7"), "block"),
        ("block: [{image: index.docker.io/acme/*, reason: Too old.}]", entry(image="acme/box:1"), "block"),
        ("block: [{package: npm, reason: Too old.}]", PACKAGED, "block"),
        ("block: [{remote: mcp.acme.com, reason: Too old.}]", REMOTE, "block"),
        ("block: [{entry: other, reason: Too old.}]", IMAGED, ""),
    ],
)
def test_an_entry_is_refused_by_the_rule_that_forbids_any_way_it_could_run(
    rules: str, judged: Entry, rule: str, tmp_path: Path
) -> None:
    why = book(tmp_path, rules).refusal(judged)
    if not rule:
        assert why == ""
        return
    assert why.endswith(f"(rule {rule} in {tmp_path / 'rules.yaml'})")
    assert rule != "block" or "blocked: Too old." in why


def test_a_publisher_of_the_rules_counts_before_one_of_the_catalogue(tmp_path: Path) -> None:
    rules = load_rules(book(tmp_path, ACME).file or tmp_path)
    forged = rules.publishers["acme"].model_copy(update={"keys": (PEM.replace("MFkw", "AAAA"),)})
    other = forged.model_copy(update={"name": "other"})
    rulebook = Rulebook(tmp_path, rules, {"acme": forged, "other": other})
    verifier = Verifier(rulebook.publishers, tmp_path, lambda _: pytest.fail("nobody is to be asked"))
    assert verifier.publisher(parse("ghcr.io/acme/box")) == rules.publishers["acme"]


@pytest.mark.anyio
async def test_an_image_that_is_refused_is_not_even_looked_up(tmp_path: Path) -> None:
    rulebook = book(tmp_path, "block: [{image: ghcr.io/acme/*, reason: Too old.}]")
    verifier = Verifier({}, tmp_path, lambda _: pytest.fail("nobody is to be asked"), rulebook.image_refusal)
    assert await verifier.check(parse("docker.io/acme/box:1")) is None
    with pytest.raises(ImageRefused, match=r"ghcr\.io/acme/box:1 is refused: .* is blocked: Too old\."):
        await verifier.check(parse("ghcr.io/acme/box:1"))


# -- commands ----------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A catalogue of two entries, one of which the rules block."""
    for name in ("CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    profiles = "profiles:\n  starter: {title: Starter, servers: [box, other]}\n"
    (tmp_path / "catalog.yaml").write_text(
        document({"box": BOX, "other": BOX.replace("example/box", "acme/other")}, profiles)
    )
    (tmp_path / "rules.yaml").write_text("version: 1\nblock: [{entry: box, reason: It leaks.}]\n")
    monkeypatch.setenv("LOCKGATE_CATALOG", str(tmp_path / "catalog.yaml"))
    monkeypatch.setenv("LOCKGATE_RULES", str(tmp_path / "rules.yaml"))
    return tmp_path


def lockgate(*words: str, input: str | None = None) -> Result:
    return CliRunner().invoke(app, ["catalog", *words], input=input)


def test_lint_show_and_rules_say_what_is_refused_and_why(home: Path) -> None:
    why = f"the entry box is blocked: It leaks. (rule block in {home / 'rules.yaml'})"
    linted = lockgate("lint")
    assert linted.exit_code == 0
    assert f"box: refused: {why}" in linted.output
    assert json.loads(lockgate("lint", "--json").stdout)["refused"] == {"box": why}
    assert f"Refused here: {why}" in lockgate("show", "box").output
    assert json.loads(lockgate("show", "other", "--json").stdout)["refused"] == ""
    shown = lockgate("rules").output
    assert "box: It leaks." in shown
    assert "1 of 2 entries may run" in shown
    assert json.loads(lockgate("rules", "--json").stdout)["file"] == str(home / "rules.yaml")


def test_what_is_refused_is_neither_picked_nor_imported(home: Path) -> None:
    picked = lockgate("pick", "box", "other", "-o", str(home / "mine.yaml"))
    assert picked.exit_code == 1
    assert "It leaks." in picked.output
    assert not (home / "mine.yaml").exists()
    docker = {"registry": {"box": {"description": "Box.", "type": "server", "image": IMAGE}}}
    imported = lockgate("import", "-", "--no-ask", input=json.dumps(docker))
    assert imported.exit_code == 1
    assert "box: left out: the entry box is blocked: It leaks." in imported.output


def test_rules_that_cannot_be_read_stop_everything(home: Path) -> None:
    (home / "rules.yaml").write_text("version: 1\nblok: []\n")
    for words in (["lint"], ["show", "other"], ["pick", "other"], ["rules"]):
        result = lockgate(*words)
        assert isinstance(result.exception, CatalogInvalid), words
        assert 'unknown key "blok" (did you mean "block"?)' in str(result.exception)
    (home / "rules.yaml").unlink()
    assert "there is no such file" in str(lockgate("rules").exception)


def test_without_a_setting_the_rules_lie_in_the_state_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCKGATE_RULES")
    assert "every entry may run" in lockgate("rules").output
    (home / "state" / "lockgate").mkdir(parents=True, exist_ok=True)
    (home / "rules.yaml").rename(home / "state" / "lockgate" / "rules.yaml")
    assert "1 of 2 entries may run" in lockgate("rules").output


# -- a running gateway -------------------------------------------------------------------------------

LOCAL_SERVERS = {"a": ["friendly"], "b": ["friendly"]}
BLOCK_A = "version: 1\nblock: [{entry: a, reason: It leaks.}]\n"


@pytest.mark.anyio
async def test_a_rule_takes_a_running_server_away_and_gives_it_back(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text("version: 1\n")
    async with running(tmp_path, LOCAL_SERVERS, rules=rules) as place:
        session = await place.session()
        pid_a, pid_b = await session.call("a__pid"), await session.call("b__pid")
        answers: list[str] = []

        async def slow() -> None:
            answers.append(await session.call("a__delay", {"ms": 2000, "mark": "late"}))

        async with anyio.create_task_group() as group:
            group.start_soon(slow)
            await until(lambda: place.gateway.pool.servers["a"].upstream.in_flight, "the call is under way")
            rules.write_text(BLOCK_A)  # seen by itself
            with anyio.fail_after(DEADLINE_S):
                while "a__pid" in await session.tools():
                    await anyio.sleep(0.02)
        assert answers == ["late"], "a call under way ends as it began"
        await until(lambda: len(place.local.processes()) == 1, "the refused server has ended")
        assert (await session.ask("tools/call", {"name": "a__pid", "arguments": {}}))["error"]["code"] == -32602
        assert await session.call("b__pid") == pid_b
        token = [("Authorization", f"Bearer {place.service.running.admin_token}")]
        answer = await place.http.request("POST", "/admin/servers/a/start", headers=token)
        assert answer.status == 502
        assert "the entry a is blocked: It leaks. (rule block in" in json.loads(answer.body)["error"]
        rules.write_text("version: 1\n")
        answer = await place.http.request("POST", "/admin/catalog/reload", headers=token)
        assert json.loads(answer.body)["refused"] == {}
        assert await session.call("a__pid") != pid_a


@pytest.mark.anyio
@pytest.mark.parametrize("damage", ["wrong", "gone"])
async def test_rules_in_force_stay_when_their_file_is_damaged(damage: str, tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(BLOCK_A)
    async with running(tmp_path, LOCAL_SERVERS, rules=rules) as place:
        session = await place.session()
        assert {name.partition("__")[0] for name in await session.tools()} == {"b"}
        place.gateway.pool.end_credentials("a", "ada")  # what is refused holds none
        if damage == "wrong":
            rules.write_text("version: 1\nblok: []\n")
        else:
            rules.unlink()
        token = [("Authorization", f"Bearer {place.service.running.admin_token}")]
        answer = await place.http.request("POST", "/admin/catalog/reload", headers=token)
        assert answer.status == 422
        assert str(rules) in json.loads(answer.body)["error"]
        assert {name.partition("__")[0] for name in await session.tools()} == {"b"}


def test_a_gateway_does_not_start_with_rules_that_cannot_be_read(tmp_path: Path) -> None:
    catalog = write_catalog(tmp_path / "catalog.yaml", {"a": {"package": LOCAL, "command": ["friendly"]}})
    wrong = tmp_path / "rules.yaml"
    wrong.write_text("version: 1\nblok: []\n")
    with pytest.raises(CatalogInvalid, match="blok"):
        Gateway(settings_of(tmp_path, catalog, rules=wrong))


def test_the_runtime_too_refuses(tmp_path: Path) -> None:
    """Whatever asks for a runtime, `lockgate check` among them, is told."""
    catalog = write_catalog(tmp_path / "catalog.yaml", {"a": {"package": LOCAL, "command": ["friendly"]}})
    rules = tmp_path / "rules.yaml"
    rules.write_text(BLOCK_A)
    gateway = Gateway(settings_of(tmp_path, catalog, rules=rules))
    runtime, why = gateway.would_run(gateway.catalog.entry("a"))
    assert (runtime, "is blocked: It leaks." in why) == ("-", True)
    assert open_rulebook(gateway.settings, gateway.catalog) == gateway.rulebook
