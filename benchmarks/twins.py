"""A second container made as the gateway made its own, to measure the attach stream without a gateway.

Knows five requests of the Docker Engine API over its socket file."""

from __future__ import annotations

import http.client
import json
import socket
from contextlib import suppress
from typing import Any, Final, Self
from urllib.parse import quote

TIMEOUT_S: Final = 30.0
LAUNCHER: Final = "/run/lockgate/"
"""Programs below it start the gateway's containers, and connect them with pipes of the gateway's."""


class EngineRefused(Exception):
    """The Docker Engine did not do what was asked."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("docker", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Engine:
    """Blocking requests to one Docker Engine."""

    def __init__(self, path: str) -> None:
        self.path = path

    def ask(self, method: str, target: str, body: object = None) -> Any:
        """
        Raises:
            EngineRefused: any status but success.
        """
        connection = _UnixConnection(self.path)
        try:
            content = json.dumps(body) if body is not None else None
            connection.request(method, target, content, {"Content-Type": "application/json"})
            response = connection.getresponse()
            answer = response.read()
        except OSError as exc:
            raise EngineRefused(f"no Docker Engine at {self.path}: {exc}") from exc
        finally:
            connection.close()
        if not 200 <= response.status < 300:
            raise EngineRefused(f"{method} {target}: HTTP {response.status} {answer[:300]!r}")
        return json.loads(answer) if answer else None

    def answers(self) -> bool:
        with suppress(EngineRefused):
            self.ask("GET", "/version")
            return True
        return False

    def of_gateway(self, gateway_id: str, server: str) -> dict[str, Any]:
        """The container of one of a gateway's servers, as `docker inspect` shows it."""
        filters = quote(json.dumps({"label": [f"lockgate.gateway={gateway_id}", f"lockgate.server={server}"]}))
        (found,) = self.ask("GET", f"/containers/json?filters={filters}")
        inspected: dict[str, Any] = self.ask("GET", f"/containers/{found['Id']}/json")
        return inspected


class Twin:
    """A container with the image, command, limits and isolation of another, and neither launcher nor pipes. Enter to
    start, leave to remove."""

    def __init__(self, engine: Engine, original: dict[str, Any]) -> None:
        self._engine = engine
        self._original = original
        self.id = ""
        self.pid = 0

    def __enter__(self) -> Self:
        config = dict(self._original["Config"])
        config.pop("Hostname", None)
        config["Image"] = self._original["Image"]
        config["HostConfig"] = {**self._original["HostConfig"], "Mounts": []}
        if (config["Entrypoint"] or [""])[0].startswith(LAUNCHER):
            # Its own program: the launcher would wait for the gateway.
            config["Entrypoint"], config["Cmd"] = config["Cmd"][:1], config["Cmd"][1:]
        # Without the gateway's label no gateway removes it.
        config["Labels"] = {"lockgate.benchmark": "1"}
        self.id = self._engine.ask("POST", "/containers/create", config)["Id"]
        try:
            self._engine.ask("POST", f"/containers/{self.id}/start")
            self.pid = self._engine.ask("GET", f"/containers/{self.id}/json")["State"]["Pid"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(EngineRefused):
            self._engine.ask("DELETE", f"/containers/{self.id}?force=1")
