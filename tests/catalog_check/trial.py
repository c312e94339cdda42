"""One trial: build an entry's image from its package, start it in a container, list its tools, and clean up.

Knows how to make an entry fit for a trial and asks a whole gateway to start it; not how results are written down."""

from __future__ import annotations

import datetime
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Final

import anyio
import anyio.to_thread
import docker
import msgspec

from catalog import Entry, Package, Profile
from catalog.writing import write_catalog
from gateway import errors
from gateway.gateway import Gateway
from gateway.listings import Listing
from gateway.settings import read_settings
from gateway.wire import envelope
from tests.catalog_check.record import Result, tool

MADE_UP: Final = "made-up-for-a-check"
SHAPED: Final = {
    "MDB_MCP_CONNECTION_STRING": "mongodb://127.0.0.1:1",
    "STRIPE_SECRET_KEY": f"rk_{MADE_UP}",
    "ES_URL": "http://127.0.0.1:9200",
}
"""Variables whose server looks at the form of the value before it starts."""
REASON_CHARS: Final = 300
LAST_LINES: Final = 4
BY_TYPE: Final = {"string": MADE_UP, "integer": 1, "number": 1.0, "boolean": False, "list": (MADE_UP,)}


def prepared(entry: Entry) -> tuple[Entry, tuple[str, ...]]:
    """The entry as the check runs it, from its package and without network; and what was made up for that."""
    values: dict[str, object] = {}
    mounted = {mount.config for mount in entry.mounts}
    for setting in entry.config:
        if setting.required and setting.name not in mounted:
            values[setting.name] = (
                SHAPED.get(setting.env or "")
                or setting.example
                or (setting.enum[0] if setting.enum else BY_TYPE[setting.type])
            )
    for names in entry.config_any_of[:1]:
        values |= dict.fromkeys(names, MADE_UP)
    unmounted = entry.model_copy(
        update={
            "mounts": (),
            "config": tuple(setting for setting in entry.config if setting.name not in mounted),
        }
    )
    secrets = {secret.env: secret.name for secret in entry.secrets if secret.required and secret.env}
    if entry.oauth is not None and entry.oauth.env is not None:
        secrets[entry.oauth.env] = entry.oauth.secret or entry.oauth.provider
    ready = unmounted.configured(values)
    return ready.model_copy(
        update={
            "image": None,
            "remote": None,
            "args": (),
            "secrets": (),
            "oauth": None,
            "hosts": (),
            "network": "none",
            "transport": "stdio",
            "port": None,
            "path": None,
            "env": {**ready.env, **{name: SHAPED.get(name, MADE_UP) for name in secrets}},
        }
    ), (*secrets.values(), *values)


async def trial(entry: Entry, package: Package, folder: Path, keep: bool) -> Result:
    """The outcome, from a gateway of its own with this one entry in its catalog; a failure is an outcome, too."""
    ready, made_up = prepared(entry)
    profile = Profile(name="check", title="One server on trial", servers=(entry.id,))
    catalog = folder / "catalog.yaml"
    catalog.write_text(write_catalog([ready], [profile]))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("LOCKGATE_")}
    settings = replace(
        read_settings(environ), state_dir=folder / "state", catalog=catalog, profile="check", runtime="docker"
    )
    found: Listing | None = None
    revision, reason = "", ""
    async with Gateway(settings) as gateway:
        server = gateway.pool.servers[entry.id]
        try:
            found = await gateway.pool.learn(entry.id)
            if server.upstream is not None and server.upstream.facts is not None:
                revision = server.upstream.facts.revision
        except errors.GatewayError as exc:
            last = [line.text for line in server.log.lines() if line.origin == "stderr"]
            reason = _short("; ".join([str(exc), *last[-LAST_LINES:]]))
    if not keep:
        await anyio.to_thread.run_sync(_discard, settings.docker_host, entry.id)
    info = msgspec.json.decode(found.server_info) if found is not None else {}
    return Result(
        id=entry.id,
        package=f"{package.ecosystem}: {package.name}",
        version=package.version,
        date=datetime.datetime.now(datetime.UTC).date().isoformat(),
        reason=reason,
        revision=revision,
        server=f"{info.get('name', '')} {info.get('version', '')}".strip(),
        made_up=made_up,
        tools=tuple(tool(envelope.value(item.raw)) for item in found.tools) if found is not None else (),
    )


def _short(text: str) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= REASON_CHARS else f"{line[: REASON_CHARS // 2]} ... {line[-REASON_CHARS // 2 :]}"


def _discard(docker_url: str, id: str) -> None:
    """Remove the images built for the entry: all of them together need tens of gigabytes."""
    client = docker.DockerClient(base_url=docker_url)
    try:
        for image in client.images.list(filters={"label": f"lockgate.entry={id}"}):
            client.images.remove(image.id, force=True)
    except docker.errors.DockerException as exc:
        logging.getLogger(__name__).warning("image of %s: %s", id, type(exc).__name__)
    finally:
        client.close()
