"""What containers are handed: secrets that arrive and leave no trace, folders that are the ones that were checked."""

import os
import secrets
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from anyio import to_thread

from catalog import Mount, Secret, Volume
from gateway.errors import UpstreamError, UpstreamUnavailable
from gateway.mounts import MountGuard
from tests.gateway.leaks import (
    assert_absent,
    sweep_engine,
    sweep_files,
    sweep_layers,
    sweep_processes,
    sweep_whole_engine,
)
from tests.gateway.sandboxes import base_image, engine, probe_entry, sandbox

pytestmark = [pytest.mark.anyio, pytest.mark.docker]

CANARIES = {
    "probe.key": 'c4nary/"+ value\nsecond line of it é ',
    "probe.file": "an0ther-canary-in-a-file\n\n",
    "probe.value": "k3y with $(touch /tmp/x) `x` $HOME ${IFS} \\ and 'quotes'",
    "probe.jwt": "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJjYW5hcnkifQ.c2lnbmF0dXJl",
    "probe.uuid": "1c7d6ab0-55d5-4b77-a3c6-f0d1b3b1c0de",
    "probe.digits": "90817263544536271800",
}


@pytest.fixture(scope="module", autouse=True)
def _sweep() -> Iterator[None]:
    """After all tests of this file, not one value is anywhere in the engine, its images or its events."""
    client = engine()
    since = int(time.time())
    with closing(client):
        yield
        assert sweep_whole_engine(client, since, int(time.time()) + 1, CANARIES.values()) > 5


GIVEN = (
    Secret(name="probe.key", env="KEY"),
    Secret(name="probe.file", file="token"),
    Secret(name="probe.value", env="_lg_value2"),
    Secret(name="probe.jwt", env="PATH_OF_JWT", file="jwt"),
    Secret(name="probe.uuid", env="UUID"),
    Secret(name="probe.digits", env="DIGITS"),
    Secret(name="probe.absent", env="ABSENT", required=False),
)
SAY_REVERSED = """
import os
result = {name: os.environ[name][::-1] for name in ("KEY", "_lg_value2", "PATH_OF_JWT", "UUID", "DIGITS")}
result["token"] = open("/run/secrets/token", newline="").read()[::-1]
result["jwt"] = open("/run/secrets/jwt").read()[::-1]
result["mode"] = oct(os.stat("/run/secrets/token").st_mode & 0o777)
result["argv"] = open("/proc/self/cmdline").read()
result["env"] = sorted(os.environ)
"""
LEAK = """
import os, sys, base64, json
print("on stderr", os.environ["KEY"], os.environ["UUID"], file=sys.stderr, flush=True)
os.write(1, ("stray " + os.environ["PATH_OF_JWT"] + "\\n").encode())
one = os.environ["KEY"]
result = [one, base64.b64encode(one.encode()).decode(), one.encode().hex(), json.dumps(one), dict(os.environ)]
"""


@pytest.mark.sec("SEC-058")
@pytest.mark.sec("SEC-059")
async def test_secrets_reach_the_server_and_stand_nowhere_else(tmp_path: Path, cache_dir: Path) -> None:
    entry = probe_entry(await base_image(cache_dir), secrets=GIVEN)
    values = list(CANARIES.values())
    since = int(time.time())
    async with sandbox(cache_dir, tmp_path, entry, CANARIES) as box:
        seen = await box.run(SAY_REVERSED)
        arrived = [seen[name][::-1] for name in ("KEY", "token", "_lg_value2", "jwt", "UUID", "DIGITS")]
        assert arrived == values
        assert seen["PATH_OF_JWT"] == seen["jwt"]
        assert seen["mode"] == "0o600"
        assert seen["argv"].startswith("python3\0-c\0") or "/python3\0-c\0" in seen["argv"]
        assert not [name for name in seen["env"] if name.startswith("_lg_") and name != "_lg_value2"]
        # SEC-059: whatever it says of them is hidden before anybody sees it.
        answer = await box.raw(LEAK)
        assert answer.count(b"[hidden secret: probe.key]") >= 4
        assert_absent("a result", answer, values)
        id = box.channel.detail["container"]
        await to_thread.run_sync(lambda: sweep_engine(box.client, id, since, int(time.time()) + 1, values))
        assert await to_thread.run_sync(lambda: sweep_layers(box.client, id, tmp_path, values)) >= 0
        assert await to_thread.run_sync(lambda: sweep_processes(values)) > 1
        log = "\n".join(line.text for line in box.log.lines()).encode()
        assert log.count(b"[hidden secret: ") >= 3
        assert_absent("the server's log", log, values)
    sweep_files(tmp_path, values)
    sweep_files(cache_dir / "launcher", values)


async def test_a_secret_stands_in_the_containers_environment_only_if_the_entry_says_so(
    tmp_path: Path, cache_dir: Path
) -> None:
    values = {"probe.plain": "pl4in-and-visible"}
    entry = probe_entry(await base_image(cache_dir), secrets=(Secret(name="probe.plain", env="PLAIN", plain_env=True),))
    async with sandbox(cache_dir, tmp_path, entry, values) as box:
        seen = await box.inspect()
        assert "PLAIN=pl4in-and-visible" in seen["Config"]["Env"]
        assert "PLAIN" not in " ".join([*(seen["Config"]["Entrypoint"] or ()), *seen["Config"]["Cmd"][3:]])
        assert await box.run("import os; result = os.environ['PLAIN'][::-1]") == "pl4in-and-visible"[::-1]


@pytest.mark.sec("SEC-063")
async def test_a_server_without_its_secret_gets_no_container(tmp_path: Path, cache_dir: Path) -> None:
    entry = probe_entry(await base_image(cache_dir), secrets=(Secret(name="probe.key", env="KEY"),))
    with pytest.raises(UpstreamUnavailable, match=r"probe\.key is missing: set LOCKGATE_SECRET_PROBE__KEY"):
        async with sandbox(cache_dir, tmp_path, entry):
            pass


@pytest.mark.sec("SEC-062")
async def test_a_value_stays_one_element_whatever_it_contains(tmp_path: Path, cache_dir: Path) -> None:
    """Through the launcher too, where a shell holds the arguments for a moment."""
    tricks = (
        "-v",
        "--privileged",
        "a\nb",
        "$(id)",
        "`id`",
        "; rm -rf /",
        "'\"",
        "",
        "*",
        "a  b",
        "-- x",
        "\\",
        "é\u2028",
    )
    base = probe_entry(await base_image(cache_dir))
    entry = base.model_copy(
        update={
            "args": (*base.args, *tricks),
            "env": {f"T{index}": text for index, text in enumerate(tricks)},
            "secrets": (Secret(name="probe.key", env="KEY"),),
        }
    )
    async with sandbox(cache_dir, tmp_path, entry, {"probe.key": "whatever-it-is"}) as box:
        seen = await box.run(
            "import os, sys; result = [sys.argv[1:], {k: v for k, v in os.environ.items() if k[0] == 'T'}]"
        )
        assert seen == [list(tricks), {f"T{index}": text for index, text in enumerate(tricks)}]
        config = await box.inspect()
        assert config["HostConfig"]["Privileged"] is False
        assert not config["HostConfig"]["Binds"]


# -- folders -------------------------------------------------------------------------------------


async def test_an_approved_folder_is_mounted_read_only_unless_asked(tmp_path: Path, cache_dir: Path) -> None:
    for name in ("seen", "written"):
        (tmp_path / "approved" / name).mkdir(parents=True)
        (tmp_path / "approved" / name).chmod(0o777)
        (tmp_path / "approved" / name / "file").write_text(name)
    for parent in (tmp_path, tmp_path / "approved"):
        parent.chmod(0o755)
    entry = probe_entry(
        await base_image(cache_dir),
        mounts=(
            Mount(source=str(tmp_path / "approved/seen"), target="/work/seen"),
            Mount(source=str(tmp_path / "approved/written"), target="/work/written", read_only=False),
        ),
    )
    guard = MountGuard([tmp_path / "approved"], [])
    code = """
result = [open(f"/work/{name}/file").read() for name in ("seen", "written")]
for name in ("seen", "written"):
    try:
        open(f"/work/{name}/new", "w").write("x"); result.append("written")
    except OSError as exc:
        result.append(exc.errno)
"""
    async with sandbox(cache_dir, tmp_path, entry, mounts=guard) as box:
        assert await box.run(code) == ["seen", "written", 30, "written"]


@pytest.mark.sec("SEC-068")
async def test_a_folder_swapped_for_a_link_is_never_shown(tmp_path: Path, cache_dir: Path) -> None:
    """A thread exchanges the folder for a link as fast as it can while servers start: the server runs with the folder
    that was checked, or not at all."""
    approved, forbidden = tmp_path / "approved", tmp_path / "forbidden"
    for folder, text in ((approved / "work", "mine"), (forbidden, "theirs")):
        folder.mkdir(parents=True)
        (folder / "file").write_text(text)
        folder.chmod(0o755)
    approved.chmod(0o755)
    tmp_path.chmod(0o755)
    stop = threading.Event()
    work, aside, link = approved / "work", approved / "aside", approved / "link"
    link.symlink_to(forbidden)

    def swap() -> None:
        while not stop.is_set():
            os.rename(work, aside)
            os.rename(link, work)
            stop.wait(0.001)
            os.rename(work, link)
            os.rename(aside, work)
            stop.wait(0.001)

    entry = probe_entry(await base_image(cache_dir), mounts=(Mount(source=str(work), target="/work"),))
    thread = threading.Thread(target=swap)
    thread.start()
    outcomes = []
    try:
        for _ in range(8):
            try:
                async with sandbox(cache_dir, tmp_path, entry, mounts=MountGuard([approved], [])) as box:
                    outcomes.append(await box.run("result = open('/work/file').read()"))
            except UpstreamError as exc:
                outcomes.append(str(exc))
    finally:
        stop.set()
        thread.join()
    assert "theirs" not in outcomes
    assert all(outcome == "mine" or len(outcome) > 20 for outcome in outcomes)


@pytest.mark.sec("SEC-068")
async def test_the_launcher_itself_refuses_another_folder(tmp_path: Path, cache_dir: Path) -> None:
    """The last check is made inside of the container: nothing can be exchanged between it and the server."""
    approved = tmp_path / "approved"
    (approved / "work").mkdir(parents=True)
    (approved / "work").chmod(0o755)
    entry = probe_entry(await base_image(cache_dir), mounts=(Mount(source=str(approved / "work"), target="/work"),))
    guard = MountGuard([approved], [])
    guard.recheck = lambda opened: os.rename(opened.path, approved / "aside") or (approved / "work").mkdir()  # type: ignore[method-assign,func-returns-value]
    with pytest.raises(UpstreamError) as caught:
        async with sandbox(cache_dir, tmp_path, entry, mounts=guard):
            pass
    assert "/work is not the folder that was checked" in str(caught.value)


async def test_a_full_volume_keeps_its_server_from_starting(tmp_path: Path, cache_dir: Path) -> None:
    entry = probe_entry(
        await base_image(cache_dir), volumes=(Volume(name="data", target="/data"),), limits={"volume_mib": 1}
    )
    data = tmp_path / "volumes/probe/data"
    data.mkdir(parents=True)
    (data / "big").write_bytes(secrets.token_bytes(2 * 1024 * 1024))
    with pytest.raises(UpstreamUnavailable, match="more than its limit of 1 MiB"):
        async with sandbox(cache_dir, tmp_path, entry):
            pass


@pytest.mark.sec("SEC-069")
async def test_a_server_that_fills_its_volumes_is_ended(tmp_path: Path, cache_dir: Path) -> None:
    """Each file is small enough; together they are too much."""
    entry = probe_entry(
        await base_image(cache_dir), volumes=(Volume(name="data", target="/data"),), limits={"volume_mib": 4}
    )
    fill = """
import time
for index in range(8):
    with open(f"/data/{index}", "wb") as file:
        file.write(b"x" * (1 << 20))
time.sleep(600)
"""
    with pytest.raises(UpstreamError, match=r"its volumes hold \d MiB, more than its limit of 4 MiB"):
        async with sandbox(cache_dir, tmp_path, entry) as box:
            await box.run(fill)
