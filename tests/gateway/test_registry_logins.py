"""Registries that want tokens, and registries with mirrors: real ones on loopback, read with right and wrong logins."""

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import docker
import pytest

from gateway.errors import ImageError
from gateway.images import ImageStore, names
from gateway.images.logins import Login
from gateway.images.names import parse
from gateway.images.puller import _whom_to_reach
from gateway.images.registry import NotThere, RegistryClient
from tests.gateway.engines import client, engine_url, make_tiny_image, tiny_entry
from tests.gateway.registries import PASSWORD, USER, TestRegistry, TokenService, b64, forget, registry, token_service

ROBOT = Login(USER, PASSWORD)
IMAGE = "plain/private"


@pytest.fixture(scope="module")
def engine() -> Iterator[docker.APIClient]:
    with closing(client()) as found:
        yield found


@pytest.fixture(scope="module")
def guarded(
    tmp_path_factory: pytest.TempPathFactory, engine: docker.APIClient
) -> Iterator[tuple[TestRegistry, TokenService]]:
    """A registry that wants tokens, with an image in it."""
    folder = tmp_path_factory.mktemp("guarded")
    with token_service(folder / "tokens") as tokens, registry(folder / "registry", tokens=tokens) as hub:
        name = f"{hub.host}/{IMAGE}"
        make_tiny_image(engine, folder, name)
        login = {"username": USER, "password": PASSWORD}
        for report in engine.push(name, tag="1", stream=True, decode=True, auth_config=login):
            assert "error" not in report, report
        forget(engine, name)
        yield hub, tokens
        forget(engine, name)


@pytest.fixture(autouse=True)
def unbroken(guarded: tuple[TestRegistry, TokenService]) -> Iterator[None]:
    guarded[1].asked.clear()
    yield
    guarded[1].broken = ""


def read(hub: TestRegistry, login: Login | None) -> str:
    with closing(RegistryClient(parse(f"{hub.host}/{IMAGE}:1"), login, insecure=True)) as one:
        return one.manifest("1").digest


# -- tokens --------------------------------------------------------------------------------------


@pytest.mark.docker
def test_a_token_is_asked_for_with_the_login_or_an_identity_token(guarded: tuple[TestRegistry, TokenService]) -> None:
    hub, tokens = guarded
    digest = read(hub, ROBOT)
    assert digest.startswith("sha256:")
    assert read(hub, Login("", "", tokens.IDENTITY)) == digest
    assert tokens.asked == [USER, "identity"]


@pytest.mark.docker
@pytest.mark.parametrize("broken", ["expired", "foreign", "of another service", "without rights"])
def test_a_token_that_the_registry_does_not_take_is_an_error_that_says_so(
    guarded: tuple[TestRegistry, TokenService], broken: str
) -> None:
    hub, tokens = guarded
    tokens.broken = broken  # type: ignore[assignment]
    with pytest.raises(ImageError, match=r"refused the login .* expired, or does not open") as caught:
        read(hub, ROBOT)
    assert not isinstance(caught.value, NotThere)
    assert tokens.asked == [USER]  # not again and again


@pytest.mark.docker
@pytest.mark.parametrize("login", [None, Login(USER, "wr0ng-password"), Login("", "", "wr0ng-identity-token")])
def test_a_wrong_login_is_refused_and_not_shown(
    guarded: tuple[TestRegistry, TokenService], login: Login | None
) -> None:
    with pytest.raises(ImageError, match=r"refused the login \(HTTP 401\)") as caught:
        read(guarded[0], login)
    assert "wr0ng" not in f"{caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.docker
def test_a_token_service_that_is_gone_is_named_as_the_reason(tmp_path: Path) -> None:
    with ExitStack() as stack:
        tokens = TokenService(tmp_path / "tokens")
        hub = stack.enter_context(registry(tmp_path / "registry", tokens=tokens))
        tokens.close()
        with pytest.raises(ImageError, match="login service cannot be asked"):
            read(hub, ROBOT)


@pytest.mark.docker
@pytest.mark.anyio
async def test_an_image_behind_tokens_is_resolved_and_pulled_with_the_users_login_and_not_without(
    guarded: tuple[TestRegistry, TokenService], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub, tokens = guarded
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    entry = tiny_entry(f"{hub.host}/{IMAGE}:1")

    async def ensure() -> str:
        # A store of its own each time: what cannot be reached or resolved is remembered.
        store = ImageStore(tmp_path / "cache", docker_url=engine_url(), lock=tmp_path / "catalog.lock")
        return (await store.ensure(entry, progress=lambda _: None)).id

    def log_in(password: str) -> None:
        auth = {"auth": b64(f"{USER}:{password}".encode())}
        (tmp_path / "config.json").write_text(json.dumps({"auths": {hub.host: auth}}))

    for password in ("", "wr0ng-password"):
        if password:
            log_in(password)
        with pytest.raises(ImageError, match="cannot be resolved") as caught:
            await ensure()
        assert "refused the login" in str(caught.value)
        assert "wr0ng" not in str(caught.value)
    log_in(PASSWORD)
    tokens.broken = "expired"
    with pytest.raises(ImageError, match="cannot be resolved"):
        await ensure()
    tokens.broken = ""
    assert await ensure()


# -- mirrors -------------------------------------------------------------------------------------

CONTENT = b"what the blob holds"


class Hub:
    """Docker Hub's part is played by a registry on loopback, and so is each mirror's."""

    def __init__(self, origin: TestRegistry, mirrors: list[TestRegistry]) -> None:
        self.origin = origin
        self.mirrors = mirrors

    def client(self, *mirrors: str) -> RegistryClient:
        found = [*mirrors, *(f"http://{one.host}/" for one in self.mirrors)]
        return RegistryClient(parse("docker.io/acme/box:1"), ROBOT, insecure=True, mirrors=found)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with registry(tmp_path / "origin") as origin, registry(tmp_path / "mirror") as mirror:
        monkeypatch.setattr(names, "HUB_HOST", origin.host)
        yield Hub(origin, [mirror])


def test_the_first_mirror_that_has_it_is_asked_and_one_that_is_dead_costs_nothing_else(hub: Hub) -> None:
    (mirror,) = hub.mirrors
    digest = mirror.put_blob("acme/box", CONTENT)
    manifest, _ = mirror.put_manifest("acme/box", "1", [])
    with closing(hub.client("http://127.0.0.1:9/")) as one:
        assert one.manifest("1").digest == manifest  # the registry itself has none of it
        assert one.manifest(manifest).digest == manifest
        assert one.blob(digest) == CONTENT


def test_what_no_mirror_has_comes_from_the_registry_itself(hub: Hub, tmp_path: Path) -> None:
    digest = hub.origin.put_blob("acme/box", CONTENT)
    manifest, _ = hub.origin.put_manifest("acme/box", "1", [])
    with closing(hub.client("http://127.0.0.1:9/")) as one:
        assert one.manifest("1").digest == manifest
        assert one.blob(digest) == CONTENT
        with pytest.raises(NotThere):
            one.manifest("2")
        one.pull_blob(digest, len(CONTENT), tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == CONTENT


def test_a_mirror_that_wants_a_login_gets_none(tmp_path: Path, hub: Hub) -> None:
    manifest, _ = hub.origin.put_manifest("acme/box", "1", [])
    guarded = registry(tmp_path / "guarded", login=True)
    with guarded as mirror, closing(hub.client(f"http://{mirror.host}")) as one:
        assert one.manifest("1").digest == manifest


@pytest.mark.sec("SEC-072")
def test_what_a_mirror_changed_is_taken_from_the_registry_itself_or_refused(hub: Hub, tmp_path: Path) -> None:
    (mirror,) = hub.mirrors
    digest = mirror.put_blob("acme/box", CONTENT)
    mirror.blob_file(digest).write_bytes(b"something else     ")
    with closing(hub.client()) as one, pytest.raises(NotThere):
        one.blob(digest)
    assert hub.origin.put_blob("acme/box", CONTENT) == digest
    with closing(hub.client()) as one:
        assert one.blob(digest) == CONTENT
    with closing(hub.client()) as one:
        one.pull_blob(digest, len(CONTENT), tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == CONTENT
    hub.origin.blob_file(digest).write_bytes(b"something else     ")
    with closing(hub.client()) as one, pytest.raises(ImageError, match="sent another blob than"):
        one.blob(digest)


def test_an_engine_needs_one_of_its_mirrors_or_the_registry() -> None:
    info = {"RegistryConfig": {"Mirrors": ["http://a.example:5000/", "https://b.example/"]}}
    mirrors = [("a.example", 5000), ("b.example", 443)]
    assert _whom_to_reach(parse("alpine:3"), info) == [*mirrors, ("registry-1.docker.io", 443)]
    assert _whom_to_reach(parse("ghcr.io/acme/box"), info) == [("ghcr.io", 443)]
    assert _whom_to_reach(parse("alpine:3"), {**info, "HttpsProxy": "http://p.example:3128"}) == [("p.example", 3128)]
