"""The leak sweep: looks for known values in whatever a test hands it, in every form in which they might turn up.

Knows no gateway."""

import base64
import json
import os
import stat
import tarfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, quote_plus

import docker

CANARIES: set[str] = set()
"""Every secret value that a test of this session handed to a server, but for those that an entry shows on purpose."""
MAX_SWEPT_BYTES: Final = 8 * 1024 * 1024
"""Of one file, in the sweep at the end; logs and records are far smaller."""


def remember(values: Iterable[str]) -> None:
    """These are looked for at the end of the session, too."""
    CANARIES.update(values)


def shapes(value: str) -> set[bytes]:
    """The forms in which a value is looked for: raw, its lines, hex, URL, JSON, base64 at each alignment."""
    raw = value.encode()
    found = {raw, *raw.splitlines(), raw.hex().encode(), raw.hex().upper().encode()}
    found |= {quote(value, safe="").encode(), quote_plus(value).encode()}
    found |= {json.dumps(value)[1:-1].encode(), json.dumps(value, ensure_ascii=False)[1:-1].encode()}
    for before in range(3):
        code = base64.b64encode(b"\0" * before + raw)
        found.add(code[4 : (before + len(raw)) // 3 * 4])
    return {one for one in found if len(one) >= 8}


def assert_absent(where: str, data: bytes, values: Iterable[str]) -> None:
    """Fail if one of the values is in the data; the message shows the place and not the value."""
    for value in values:
        assert not any(shape in data for shape in shapes(value)), f"a secret is in {where}"


def sweep_files(folder: Path, values: Iterable[str]) -> int:
    """Look into every file below the folder; how many there were."""
    n = 0
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink():
            assert_absent(str(file), file.read_bytes(), values)
            n += 1
    return n


def sweep_processes(values: Iterable[str]) -> int:
    """Look into the arguments of every process of this machine; how many there were."""
    n = 0
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                assert_absent("the arguments of a process", (process / "cmdline").read_bytes(), values)
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended meanwhile
            n += 1
    return n


def sweep_engine(client: docker.APIClient, container: str, since: int, until: int, values: Iterable[str]) -> None:
    """Look into everything the engine tells about one running container and its image."""

    def text(found: Any) -> bytes:
        return json.dumps(found, ensure_ascii=False, default=str).encode()

    inspected = client.inspect_container(container)
    assert_absent("docker inspect", text(inspected), values)
    assert_absent("docker ps", text(client.containers(all=True)), values)
    assert_absent("docker top", text(client.top(container, "-eo pid,args")), values)
    assert_absent("docker events", b"".join(client.events(since=since, until=until, decode=False)), values)
    assert_absent("docker history", text(client.history(inspected["Image"])), values)
    assert_absent("docker image inspect", text(client.inspect_image(inspected["Image"])), values)
    assert_absent("docker diff", text(client.diff(container)), values)
    for volume in client.volumes()["Volumes"] or []:
        assert_absent("docker volume inspect", text(volume), values)


def sweep_session(folder: Path, client: docker.APIClient | None, since: int) -> Counter[str]:
    """Look for every value of the session in what is left at its end; how many of what there was."""
    wanted = [shape for value in CANARIES for shape in shapes(value)]

    def look(where: str, data: bytes) -> None:
        assert not any(shape in data for shape in wanted), f"a secret is in {where}"

    found = Counter(process=sweep_processes(CANARIES))
    for name, content in _small_files(folder):
        look(name, content)
        found["file"] += 1
    if client is not None:
        found["thing of the engine"] = sweep_whole_engine(client, since, int(time.time()) + 1, CANARIES)
        for one in client.containers(all=True):
            with suppress(docker.errors.APIError):  # another's, gone meanwhile, or one that does not run
                look("docker inspect", json.dumps(client.inspect_container(one["Id"]), ensure_ascii=False).encode())
                look("docker logs", client.logs(one["Id"]))
                look("docker top", json.dumps(client.top(one["Id"], "-eo pid,args"), ensure_ascii=False).encode())
            found["container"] += 1
        for layer in _new_layers(client, since):
            for name, content in _small_files(layer):
                look(f"an image's layer, {name}", content)
            found["layer"] += 1
    return found


def _small_files(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files below the folder; what vanishes meanwhile holds nothing."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            with suppress(OSError):
                if stat.S_ISREG(path.lstat().st_mode) and path.lstat().st_size <= MAX_SWEPT_BYTES:
                    yield str(path), path.read_bytes()


def _new_layers(client: docker.APIClient, since: int) -> Iterator[Path]:
    """The top layers of images that were made or named since, where this machine's disk shows them."""
    for image in client.images():
        try:
            seen = client.inspect_image(image["Id"])
        except docker.errors.ImageNotFound:
            continue
        tagged = str((seen.get("Metadata") or {}).get("LastTagTime") or "")[:19]
        folder = ((seen.get("GraphDriver") or {}).get("Data") or {}).get("UpperDir")
        if folder and tagged >= time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(since)) and os.access(folder, os.R_OK):
            yield Path(folder)


def sweep_whole_engine(client: docker.APIClient, since: int, until: int, values: Iterable[str]) -> int:
    """Look into everything the engine knows of anything, and has said since; how many things there were."""
    values = list(values)
    told = [("docker events", b"".join(client.events(since=since, until=until, decode=False)))]

    def known(where: str, found: Any) -> None:
        told.append((where, json.dumps(found, ensure_ascii=False, default=str).encode()))

    known("docker info", client.info())
    known("docker network ls", client.networks())
    known("docker volume ls", client.volumes())
    known("docker ps", client.containers(all=True))
    for image in client.images():
        try:
            known("docker image inspect", client.inspect_image(image["Id"]))
            known("docker history", client.history(image["Id"]))
        except docker.errors.ImageNotFound:
            continue  # another test's, removed meanwhile
    for where, data in told:
        assert_absent(where, data, values)
    return len(told)


def sweep_layers(client: docker.APIClient, container: str, folder: Path, values: Iterable[str]) -> int:
    """Look into the container's own layer on top of its image, as `docker export` gives it; how many files there were
    that the image does not have."""
    changed = {one["Path"] for one in client.diff(container) or []}
    packed = folder / "exported.tar"
    with packed.open("wb") as out:
        for chunk in client.export(container):
            out.write(chunk)
    n = 0
    with tarfile.open(packed) as archive:
        for member in archive:
            if member.isfile() and "/" + member.name.lstrip("./") in changed:
                file = archive.extractfile(member)
                assert_absent(f"the container's layer, {member.name}", file.read() if file else b"", values)
                n += 1
    packed.unlink()
    return n
