"""Models in a real container registry: pushed, pulled, broken off, tampered with."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from engine import BadModelFile, ChatModel, ModelNotFound, ModelStore, StoredModel
from engine.gguf import read_header
from gateway.errors import ImageError
from gateway.modeltrip import pull_model, push_model
from tests.engine import tiny_gguf as tiny
from tests.engine.conftest import model_store, smollm2  # noqa: F401  # fixtures
from tests.engine.splitting import split
from tests.gateway.cutting import cutting_proxy
from tests.gateway.registries import TestRegistry, registry

DEADLINE_S = 300
ASK = {"messages": [{"role": "user", "content": "Name three colours."}], "temperature": 0, "max_tokens": 24}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestRegistry]:
    with registry(tmp_path_factory.mktemp("models")) as found:
        yield found


@pytest.fixture
def mine(tmp_path: Path) -> ModelStore:
    """A store with one model whose weights take a few pieces to send."""
    store = ModelStore(tmp_path / "mine")
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny.gguf() + os.urandom(9 << 20))
    store.import_file(path, "tiny:1", license="Apache-2.0", chat_template="{{ messages }}")
    return store


def nothing(digest: str, had: int, size: int) -> None:
    pass


def test_model_comes_back_as_it_was_sent(hub: TestRegistry, mine: ModelStore, tmp_path: Path) -> None:
    name = f"{hub.host}/ai/tiny:1"
    seen: dict[str, list[int]] = {}
    digest = push_model(mine, "tiny:1", name, lambda digest, had, _: seen.setdefault(digest, []).append(had))
    sent = mine.get("tiny:1")
    assert digest == sent.manifest_digest
    assert max(seen[sent.digest]) == sent.size_bytes
    theirs = ModelStore(tmp_path / "theirs")
    got = pull_model(theirs, name, nothing)
    assert (got.ref, got.digest, got.manifest_digest) == (name, sent.digest, sent.manifest_digest)
    assert (got.license, got.chat_template, got.architecture) == ("Apache-2.0", "{{ messages }}", sent.architecture)
    theirs.verify(name)
    assert not [left for left in (theirs.root / "downloads").iterdir() if left.suffix != ".lock"]
    again = pull_model(ModelStore(tmp_path / "theirs"), f"{hub.host}/ai/tiny@{digest}", nothing)
    assert again.manifest_digest == digest
    document = json.loads((theirs.root / "blobs" / "sha256" / digest.partition(":")[2]).read_bytes())
    assert document["config"]["mediaType"] == "application/vnd.docker.ai.model.config.v0.1+json"
    assert [layer["mediaType"].rpartition(".ai.")[2] for layer in document["layers"]] == [
        "gguf.v3",
        "license",
        "chat.template.jinja",
    ]


def test_layer_that_was_tampered_with_is_refused_and_leaves_nothing(
    hub: TestRegistry, mine: ModelStore, tmp_path: Path
) -> None:
    name = f"{hub.host}/ai/tampered:1"
    push_model(mine, "tiny:1", name, nothing)
    blob = hub.blob_file(mine.get("tiny:1").digest)
    whole = blob.read_bytes()
    theirs = ModelStore(tmp_path / "theirs")
    try:
        blob.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(ImageError, match="sent another blob than sha256"):
            pull_model(theirs, name, nothing)
        assert not theirs.list()
        blob.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ImageError, match=r"another blob|breaks off|cannot be asked|HTTP 416"):
            pull_model(theirs, name, nothing)
        assert not theirs.list()
    finally:
        blob.write_bytes(whole)
    assert pull_model(theirs, name, nothing).digest == mine.get("tiny:1").digest


PULL = """
import os, signal, sys
from pathlib import Path
from engine import ModelStore
from gateway.modeltrip import pull_model
def progress(digest, had, size):
    if had > 4_000_000:
        os.kill(os.getpid(), signal.SIGKILL)
pull_model(ModelStore(Path(sys.argv[1])), sys.argv[2], progress)
"""


def test_pull_that_was_killed_goes_on_where_it_was(hub: TestRegistry, mine: ModelStore, tmp_path: Path) -> None:
    name = f"{hub.host}/ai/killed:1"
    push_model(mine, "tiny:1", name, nothing)
    theirs = ModelStore(tmp_path / "theirs")
    argv = [sys.executable, "-c", PULL, str(theirs.root), name]
    assert subprocess.run(argv, timeout=DEADLINE_S, check=False).returncode == -signal.SIGKILL
    assert not theirs.list()
    first: list[int] = []
    weights = mine.get("tiny:1").digest
    pull_model(theirs, name, lambda digest, had, _: first.append(had) if digest == weights else None)
    assert min(first) > 4_000_000
    theirs.verify(name)


def test_connections_that_break_cost_only_what_had_not_arrived(
    hub: TestRegistry, mine: ModelStore, tmp_path: Path
) -> None:
    with cutting_proxy(int(hub.host.rpartition(":")[2])) as proxy:
        name = f"{proxy.host}/ai/cut:1"
        proxy.cut("up", 2 << 20, times=2)
        push_model(mine, "tiny:1", name, nothing)
        assert proxy.cuts == 2
        theirs = ModelStore(tmp_path / "theirs")
        proxy.cut("down", 3 << 20, times=2)
        got = pull_model(theirs, name, nothing)
        assert proxy.cuts == 4
    assert got.digest == mine.get("tiny:1").digest
    theirs.verify(name)


def test_concurrent_pulls_of_one_model_do_not_disturb_each_other(
    hub: TestRegistry, mine: ModelStore, tmp_path: Path
) -> None:
    name = f"{hub.host}/ai/twice:1"
    push_model(mine, "tiny:1", name, nothing)
    theirs = ModelStore(tmp_path / "theirs")
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(pull_model(theirs, name, nothing).digest)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert found == [mine.get("tiny:1").digest] * 4
    theirs.verify(name)


def test_what_is_no_model_is_refused(hub: TestRegistry, mine: ModelStore, tmp_path: Path) -> None:
    theirs = ModelStore(tmp_path / "theirs")
    with pytest.raises(ImageError, match="has no"):
        pull_model(theirs, f"{hub.host}/ai/nobody:1", nothing)
    hub.put_manifest("ai/image", "1", [])
    with pytest.raises(BadModelFile, match="0 layers of GGUF weights"):
        pull_model(theirs, f"{hub.host}/ai/image:1", nothing)
    with pytest.raises(ModelNotFound):
        push_model(mine, "nobody:1", f"{hub.host}/ai/nobody:1", nothing)


@pytest.mark.sec("SEC-099")
def test_hostile_weights_from_a_registry_are_refused_before_they_have_a_name(hub: TestRegistry, tmp_path: Path) -> None:
    content = b"GGUF" + b"\xff" * 64
    digest = hub.put_blob("ai/hostile", content)
    layer = {"mediaType": "application/vnd.docker.ai.gguf.v3", "digest": digest, "size": len(content)}
    hub.put_manifest("ai/hostile", "1", [layer])
    theirs = ModelStore(tmp_path / "theirs")
    with pytest.raises(BadModelFile, match="GGUF version"):
        pull_model(theirs, f"{hub.host}/ai/hostile:1", nothing)
    assert not theirs.list()


async def answer(model: StoredModel) -> str:
    with anyio.fail_after(DEADLINE_S):
        async with ChatModel(model, n_ctx=512, n_sequences=1) as chat:
            return str((await chat.complete(ASK))["choices"][0]["message"]["content"])


@pytest.mark.model
@pytest.mark.anyio
async def test_split_model_travels_in_parts_and_answers_like_the_whole_file(
    hub: TestRegistry,
    smollm2: StoredModel,  # noqa: F811
    tmp_path: Path,
) -> None:
    files = split(smollm2.path, tmp_path, "smol", 3)
    mine, theirs = ModelStore(tmp_path / "mine"), ModelStore(tmp_path / "theirs")
    sent = mine.import_file(files[1], "smol:split")
    name = f"{hub.host}/ai/smol:split"
    push_model(mine, "smol:split", name, nothing)
    got = pull_model(theirs, name, nothing)
    assert got.manifest_digest == sent.manifest_digest
    theirs.verify(name)
    assert [path.read_bytes() for path in (got.path, *got.more_paths)] == [file.read_bytes() for file in files]
    assert got.size_bytes == sum(file.stat().st_size for file in files)
    assert (got.architecture, got.context_length) == (smollm2.architecture, smollm2.context_length)
    assert got.parameters == f"{read_header(smollm2.path).n_parameters / 1e6:.2f} M"
    assert got.chat_template == smollm2.chat_template
    assert "split.no" not in got.metadata
    assert await answer(got) == await answer(smollm2)


@pytest.mark.sec("SEC-099")
def test_artifact_whose_parts_do_not_fit_is_refused(hub: TestRegistry, tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(tiny.gguf(tensors=[tiny.tensor(f"w{n}", offset=32 * n) for n in range(6)], data=b"\1" * 192))
    layers = []
    for file in split(path, tmp_path, "tiny", 3):
        content = file.read_bytes()
        digest = hub.put_blob("ai/parts", content)
        layers.append({"mediaType": "application/vnd.docker.ai.gguf.v3", "digest": digest, "size": len(content)})
    whole = path.read_bytes()
    foreign = layers[0] | {"digest": hub.put_blob("ai/parts", whole), "size": len(whole)}
    first, second, third = layers
    theirs = ModelStore(tmp_path / "theirs")
    for tag, wrong, reason in (
        ("missing", [first, second], "among 2 weights files"),
        ("lone", [first], "among 1 weights files"),
        ("doubled", [first, second, second], "the same layer of GGUF weights twice"),
        ("foreign", [first, foreign, third], "not part of a split model"),
    ):
        hub.put_manifest("ai/parts", tag, wrong)
        with pytest.raises(BadModelFile, match=reason):
            pull_model(theirs, f"{hub.host}/ai/parts:{tag}", nothing)
        assert not theirs.list()
    hub.put_manifest("ai/parts", "mixed", [third, first, second])
    got = pull_model(theirs, f"{hub.host}/ai/parts:mixed", nothing)
    assert [f"sha256:{part.name}" for part in (got.path, *got.more_paths)] == [one["digest"] for one in layers]
