"""`lockgate model` from a shell: running and chatting, loading, measuring, packing and sending models."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from engine import ModelNotFound
from gateway.cli import app
from gateway.commands.model_run import HELP, Chat
from gateway.errors import ImageError
from tests.e2e.gateways import LOCKGATE, RunningGateway, environment, lockgate
from tests.e2e.test_cli import printed, refused
from tests.engine import tiny_gguf as tiny
from tests.engine.conftest import model_store, smollm2  # noqa: F401  # fixtures
from tests.gateway.registries import registry
from tests.servers import write_catalog

pytestmark = [pytest.mark.model, pytest.mark.usefixtures("smollm2")]
MODEL = "smollm2:135m"
DEADLINE_S = 300


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    """A gateway with a model and no server that could be started: nobody is at the one it names."""
    folder = tmp_path_factory.mktemp("models")
    nobody = {"nobody": {"remote": {"url": "http://127.0.0.1:9/mcp"}}}
    catalog = write_catalog(folder / "catalog.yaml", nobody)
    with RunningGateway(folder / "state", runtime="process", catalog=catalog, profile="all") as gateway:
        yield gateway


def test_one_prompt_is_answered(serving: RunningGateway) -> None:
    done = serving.cli("model", "run", MODEL, "Name a colour.", "--temperature", "0", "--max-tokens", "12")
    assert len(printed(done).strip()) > 3


def test_chat_remembers_and_takes_commands(serving: RunningGateway) -> None:
    lines = "/set temperature 0\nMy name is Ann.\n/history\n/clear\n/history\n/bye\n"
    done = subprocess.run(
        [*LOCKGATE, "model", "run", MODEL, "--max-tokens", "8"],
        env=environment(serving.state),
        input=lines,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    shown = printed(done).splitlines()
    assert shown[0] == "temperature: 0.0"
    assert "user: My name is Ann." in shown
    answer = next(line.removeprefix("assistant: ") for line in shown if line.startswith("assistant: "))
    assert answer in shown
    assert shown[-2:] == ["forgotten", "nothing yet"]


def test_models_are_loaded_listed_and_unloaded(serving: RunningGateway) -> None:
    printed(serving.cli("model", "load", MODEL))
    loaded = json.loads(printed(serving.cli("model", "ps", "--json")))
    assert [one["model"] for one in loaded] == [MODEL]
    printed(serving.cli("model", "unload", MODEL))
    assert json.loads(printed(serving.cli("model", "ps", "--json"))) == []


def test_catalogue_is_searched_by_meaning_with_the_running_gateways_model(serving: RunningGateway) -> None:
    asked = ("catalog", "search", "rain", "tomorrow", "--json")
    assert json.loads(printed(serving.cli(*asked))) == []
    found = json.loads(printed(serving.cli(*asked, "--semantic", "--model", MODEL)))
    assert [entry["id"] for entry in found] == ["nobody"]
    assert [one["model"] for one in json.loads(printed(serving.cli("model", "ps", "--json")))] == [MODEL]


def test_loading_needs_a_gateway_that_runs(tmp_path: Path) -> None:
    assert "lockgate serve" in refused(lockgate("model", "load", MODEL, state=tmp_path / "state"), 1)


def test_bench_prints_a_table_with_a_plot(tmp_path: Path) -> None:
    rows = json.loads(printed(lockgate("model", "bench", MODEL, "--tokens", "4", "--json", state=tmp_path / "state")))
    assert [row["callers"] for row in rows] == [1, 2, 4, 8]
    assert all(row["tokens_per_s"] > 0 and row["first_s"] > 0 for row in rows)


def test_model_is_packed_sent_fetched_and_removed(tmp_path: Path) -> None:
    """In this process: each start of the program costs seconds."""
    environ = {"LOCKGATE_STATE_DIR": str(tmp_path / "state"), "LOCKGATE_CACHE_DIR": str(tmp_path / "cache")}
    (tmp_path / "tiny.gguf").write_bytes(tiny.gguf() + b"\0" * 100_000)
    (tmp_path / "template").write_text("{{ messages }}")
    shell = CliRunner(env=environ)

    def model(*arguments: str) -> str:
        done = shell.invoke(app, ["model", *arguments], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    with registry(tmp_path / "registry") as hub:
        name = f"{hub.host}/ai/tiny:1"
        file, template = str(tmp_path / "tiny.gguf"), str(tmp_path / "template")
        model("package", file, "tiny:1", "--license", "Apache-2.0", "--template", template)
        digest = model("push", "tiny:1", name).split()[1]
        with pytest.raises(ModelNotFound, match="names no registry"):
            model("push", "tiny:1")
        model("rm", "tiny:1")
        assert model("pull", name).startswith(name)
        about = json.loads(model("inspect", name))
        assert (about["manifest_digest"], about["chat_template"]) == (digest, "{{ messages }}")
        with pytest.raises(ImageError, match="has no"):
            model("pull", f"{hub.host}/ai/nobody:1")
    assert model("tag", name, "mine:1").strip() == "mine:1"
    assert {row["ref"] for row in json.loads(model("search", "mine", "--json"))} == {"mine:1"}
    assert json.loads(model("df", "--json"))["models_bytes"] > 100_000
    assert model("prune").strip() == "freed 0 MB"
    with pytest.raises(ModelNotFound, match="is not in the list of known models"):
        model("pull", "nobody")
    with pytest.raises(ModelNotFound, match="neither Ollama nor"):
        model("import", "--from", "nobody:1")


def test_commands_of_a_chat_say_what_they_did() -> None:
    chat = Chat(MODEL, None, {})
    assert chat.command("/set temperature hot") == "/set takes temperature, top_p, max_tokens, seed and a number"
    assert chat.command("/set max_tokens 5") == "max_tokens: 5"
    assert chat.command("/system Be brief.") == "instructions: Be brief."
    assert chat.command("/system") == "instructions: none"
    assert chat.command("/nonsense") == HELP
