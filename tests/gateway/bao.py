"""A real OpenBao of the tests' own, with TLS by an authority of its own and nothing on the disk.

Knows how it is started and spoken to; what is kept in it is the tests'."""

import json
import re
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.e2e.gateways import cache_dir, missing

START_S = 120.0
STOP_S = 60.0
ROOT = "root-token-of-the-test"


class Bao:
    """One server, and its operator."""

    def __init__(self, address: str, ca: Path, unseal_key: str) -> None:
        self.address = address
        self.ca = ca
        self._unseal_key = unseal_key
        self._trust = ssl.create_default_context(cafile=str(ca))

    @property
    def store(self) -> str:
        """The engine as a URL for a store, with its authority."""
        return f"{self.address}/secret?ca={self.ca}"

    def call(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, token: str = ROOT, namespace: str = ""
    ) -> dict[str, Any]:
        headers = {"X-Vault-Token": token, **({"X-Vault-Namespace": namespace} if namespace else {})}
        data = json.dumps(body).encode() if body is not None else None
        request = urllib.request.Request(f"{self.address}/v1/{path}", data, headers, method=method)
        with urllib.request.urlopen(request, timeout=START_S, context=self._trust) as answer:
            found: dict[str, Any] = json.loads(answer.read() or b"{}")
            return found

    def put(self, path: str, *, mount: str = "secret", namespace: str = "", **fields: object) -> None:
        self.call("POST", f"{mount}/data/{path}", {"data": fields}, namespace=namespace)

    def role(self, name: str, **settings: object) -> tuple[str, str]:
        """Ids of an AppRole that may read below `secret/`: its own and a secret one."""
        policy = 'path "secret/data/*" { capabilities = ["read"] }'
        self.call("PUT", "sys/policies/acl/reader", {"policy": policy})
        self.call("POST", f"auth/approle/role/{name}", {"token_policies": "reader", "token_ttl": "1h", **settings})
        role = self.call("GET", f"auth/approle/role/{name}/role-id")["data"]["role_id"]
        secret = self.call("POST", f"auth/approle/role/{name}/secret-id", {})["data"]["secret_id"]
        return role, secret

    @contextmanager
    def sealed(self) -> Iterator[None]:
        self.call("PUT", "sys/seal")
        try:
            yield
        finally:
            self.call("PUT", "sys/unseal", {"key": self._unseal_key})
            deadline = time.monotonic() + START_S
            while True:  # the engines are there a moment after it was unsealed
                try:
                    self.call("GET", "sys/mounts")
                    break
                except urllib.error.HTTPError:
                    assert time.monotonic() < deadline
                    time.sleep(0.02)


@contextmanager
def running() -> Iterator[Bao]:
    """A server that ends with the block, with the engine at `secret/`, a second at `deep/kv/` and AppRole."""
    program = cache_dir() / "clients" / "openbao" / "bao"
    if not program.exists():
        missing("there is no OpenBao here; .ci/parts gets it")
    with tempfile.TemporaryDirectory(prefix="lockgate-bao-") as name:
        folder = Path(name)
        log = folder / "log"
        for _ in range(20):  # another program may take the port before it does
            port = _free_port()
            argv = [program, "server", "-dev", "-dev-tls", f"-dev-tls-cert-dir={folder}", "-dev-no-store-token",
                    f"-dev-root-token-id={ROOT}", f"-dev-listen-address=127.0.0.1:{port}"]  # fmt: skip
            with log.open("wb") as told, subprocess.Popen(argv, cwd=folder, env={"HOME": name}, stdout=told,
                                                          stderr=subprocess.STDOUT) as server:  # fmt: skip
                try:
                    if not _is_ready(server, log):
                        continue
                    key = re.search(r"^Unseal Key: (\S+)$", log.read_text(), re.MULTILINE)
                    assert key is not None, log.read_text()
                    bao = Bao(f"https://127.0.0.1:{port}", folder / "vault-ca.pem", key[1])
                    bao.call("POST", "sys/auth/approle", {"type": "approle"})
                    bao.call("POST", "sys/mounts/deep/kv", {"type": "kv", "options": {"version": "2"}})
                    bao.call("POST", "sys/mounts/first", {"type": "kv", "options": {"version": "1"}})
                    yield bao
                    return
                finally:
                    server.terminate()
                    try:
                        server.wait(STOP_S)
                    except subprocess.TimeoutExpired:
                        server.kill()
        raise AssertionError(log.read_text(errors="replace"))


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _is_ready(server: subprocess.Popen[bytes], log: Path) -> bool:
    """Whether it has written its keys; False if its port was taken. Another process can only be watched."""
    deadline = time.monotonic() + START_S
    while True:
        said = log.read_text(errors="replace")
        if "Development mode should NOT be used" in said:
            return True
        if server.poll() is not None:
            assert "address already in use" in said, said
            return False
        assert time.monotonic() < deadline, said
        time.sleep(0.02)
