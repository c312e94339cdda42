"""A real container registry on this machine, and images in it: pushed, signed, damaged.

Knows the registry's files and the format of signatures; not what a gateway makes of them."""

import base64
import datetime
import hashlib
import ipaddress
import json
import secrets
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qs, urlsplit

import docker
import pytest
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier
from joserfc import jwt
from joserfc.jwk import ECKey

from tests.gateway.engines import make_tiny_image

START_S = 60
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
PAYLOAD = "application/vnd.dev.cosign.simplesigning.v1+json"
USER, PASSWORD = "robot", "s3cret-of-the-registry"
HTPASSWD = "robot:$2y$05$UCVM6CjK1VDDmMoZk1RqH.Sz4L5hyj7V6FV13pl4oluwsk7z41LnG"

PrivateKey = ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey | rsa.RSAPrivateKey


class TestRegistry:
    """One registry: its address, its files, and a plain client."""

    __test__ = False

    def __init__(self, host: str, blobs: Path, scheme: str = "http") -> None:
        self.host = host
        self.blobs = blobs
        self._scheme = scheme

    def url(self, path: str) -> str:
        return f"{self._scheme}://{self.host}/v2/{path}"

    def push(self, engine: docker.APIClient, folder: Path, name: str, *, marker: str = "", keep: bool = False) -> str:
        """Put a tiny image there as `name:1`; its digest. The engine forgets it unless it is to `keep` it."""
        full = f"{self.host}/{name}"
        make_tiny_image(engine, folder, full, marker=marker)
        for report in engine.push(full, tag="1", stream=True, decode=True):
            assert "error" not in report, report
        digests = [str(one) for one in engine.inspect_image(f"{full}:1")["RepoDigests"]]
        digest = next(one.partition("@")[2] for one in digests if one.startswith(f"{full}@"))
        if not keep:
            forget(engine, full)
        return digest

    def put_blob(self, name: str, content: bytes) -> str:
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        begun = requests.post(self.url(f"{name}/blobs/uploads/"), timeout=START_S)
        where = begun.headers["Location"]
        joint = "&" if "?" in where else "?"
        done = requests.put(f"{where}{joint}digest={digest}", data=content, timeout=START_S)
        assert done.status_code == 201, done.text
        return digest

    def put_manifest(self, name: str, tag: str, layers: list[dict[str, Any]]) -> tuple[str, int]:
        config = b"{}"
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "size": len(config),
                "digest": self.put_blob(name, config),
            },
            "layers": layers,
        }
        content = json.dumps(manifest).encode()
        self.put(name, tag, content, MANIFEST)
        return f"sha256:{hashlib.sha256(content).hexdigest()}", len(content)

    def put(self, name: str, tag: str, content: bytes, kind: str) -> None:
        url = self.url(f"{name}/manifests/{tag}")
        done = requests.put(url, data=content, headers={"Content-Type": kind}, timeout=START_S)
        assert done.status_code == 201, done.text

    def blob_file(self, digest: str) -> Path:
        hex = digest.partition(":")[2]
        return self.blobs / "docker/registry/v2/blobs/sha256" / hex[:2] / hex / "data"

    def sign(self, name: str, digest: str, *signatures: dict[str, Any], tag: str = "") -> tuple[str, int]:
        """Attach signatures as cosign does; each is what `signed` returns. Digest and size of their manifest."""
        layers = []
        for one in signatures:
            payload = one["payload"]
            notes = {key: value for key, value in one.items() if key != "payload"}
            layer = {"mediaType": PAYLOAD, "size": len(payload), "digest": self.put_blob(name, payload)}
            layers.append({**layer, "annotations": notes})
        return self.put_manifest(name, tag or f"{digest.replace(':', '-')}.sig", layers)


def forget(engine: docker.APIClient, full: str) -> None:
    """Remove every name of the repository from the engine."""
    for image in engine.images(name=full):
        for name in [*(image.get("RepoTags") or ()), *(image.get("RepoDigests") or ())]:
            if name.startswith((f"{full}:", f"{full}@")) and not name.endswith("<none>"):
                try:
                    engine.remove_image(name, force=True)
                except docker.errors.NotFound:
                    continue  # it went with another name


class TokenService:
    """Gives out the tokens that a registry wants to see (the registries' token protocol), for a login or an identity
    token. `broken` is what is wrong with them."""

    SERVICE, ISSUER, IDENTITY = "test registry", "test issuer", "identity-t0ken-of-the-robot"

    def __init__(self, folder: Path) -> None:
        self.broken: Literal["", "expired", "foreign", "of another service", "without rights"] = ""
        self.asked: list[str] = []
        """Who asked for a token."""
        folder.mkdir(exist_ok=True)
        _certify(folder)
        self.bundle = folder / "ca.crt"
        self._key = ECKey.import_key((folder / "ca.key").read_text())
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                given = self.headers.get("Authorization", "")
                login = base64.b64decode(given.removeprefix("Basic ")).decode()
                query = parse_qs(urlsplit(self.path).query)
                self._answer(login.partition(":")[0], login == f"{USER}:{PASSWORD}", query)

            def do_POST(self) -> None:
                form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self._answer("identity", form.get("refresh_token") == [service.IDENTITY], form)

            def _answer(self, who: str, knows: bool, asked: dict[str, list[str]]) -> None:
                service.asked.append(who)
                body = json.dumps({"token": service.token(asked.get("scope", []))} if knows else {}).encode()
                self.send_response(200 if knows else 401)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                """Nobody reads it."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.realm = f"http://127.0.0.1:{self._server.server_address[1]}/token"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def token(self, scopes: list[str]) -> str:
        at = int(time.time()) - (3600 if self.broken == "expired" else 0)
        access = [
            {"type": kind, "name": name, "actions": actions.split(",")}
            for kind, name, actions in (scope.split(":") for each in scopes for scope in each.split())
        ]
        claims = {
            "iss": self.ISSUER,
            "aud": "elsewhere" if self.broken == "of another service" else self.SERVICE,
            "sub": USER,
            "nbf": at - 60,
            "iat": at,
            "exp": at + 300,
            "jti": secrets.token_hex(8),
            "access": [] if self.broken == "without rights" else access,
        }
        der = base64.b64encode(x509.load_pem_x509_certificate(self.bundle.read_bytes()).public_bytes(Encoding.DER))
        key = ECKey.generate_key("P-256") if self.broken == "foreign" else self._key
        return jwt.encode({"typ": "JWT", "alg": "ES256", "x5c": [der.decode()]}, claims, key)


@contextmanager
def token_service(folder: Path) -> Iterator[TokenService]:
    service = TokenService(folder)
    try:
        yield service
    finally:
        service.close()


@contextmanager
def registry(
    folder: Path, *, login: bool = False, tls: bool = False, tokens: TokenService | None = None
) -> Iterator[TestRegistry]:
    """A real container registry on the loopback interface; engines take it without TLS. With TLS its certificate is in
    `folder` as ca.crt. It lets in whoever knows the password, or has a token of the service."""
    program = shutil.which("docker-registry")
    if program is None:
        pytest.skip("docker-registry is not installed")
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / "registry.yml"
    text = f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {folder}/blobs}}}}\n"
    text += f"http: {{addr: 127.0.0.1:{port}"
    if tls:
        _certify(folder)
        text += f", tls: {{certificate: {folder}/ca.crt, key: {folder}/ca.key}}"
    text += "}\n"
    if login:
        (folder / "htpasswd").write_text(HTPASSWD + "\n")
        text += f"auth: {{htpasswd: {{realm: test, path: {folder}/htpasswd}}}}\n"
    if tokens is not None:
        facts = {"realm": tokens.realm, "service": tokens.SERVICE, "issuer": tokens.ISSUER}
        text += f"auth: {json.dumps({'token': {**facts, 'rootcertbundle': str(tokens.bundle)}})}\n"
    config.write_text(text)
    with (folder / "registry.log").open("wb") as log:
        process = subprocess.Popen([program, "serve", config], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "registry.log").read_text()
                assert time.monotonic() < deadline, "the registry did not start"
                time.sleep(0.05)
        yield TestRegistry(f"127.0.0.1:{port}", folder / "blobs", "https" if tls else "http")
    finally:
        process.terminate()
        process.wait(START_S)


def _certify(folder: Path) -> None:
    """A certificate for loopback that vouches for itself, as a private authority's would."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test registry")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now() - datetime.timedelta(days=1))
        .not_valid_after(now() + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(True, 0), critical=True)
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.crt").write_bytes(certificate.public_bytes(Encoding.PEM))
    (folder / "ca.key").write_bytes(private_pem(key))


def private_pem(key: PrivateKey, passphrase: str = "") -> bytes:
    hidden = BestAvailableEncryption(passphrase.encode()) if passphrase else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, hidden)


# -- signatures ----------------------------------------------------------------------------------


def payload(digest: str, repository: str, kind: str = "cosign container image signature") -> bytes:
    critical = {
        "identity": {"docker-reference": repository},
        "image": {"docker-manifest-digest": digest},
        "type": kind,
    }
    return json.dumps({"critical": critical, "optional": None}).encode()


def sign_bytes(key: PrivateKey, content: bytes) -> bytes:
    match key:
        case ec.EllipticCurvePrivateKey():
            return key.sign(content, ec.ECDSA(hashes.SHA256()))
        case ed25519.Ed25519PrivateKey():
            return key.sign(content)
        case _:
            return key.sign(content, padding.PKCS1v15(), hashes.SHA256())


def signed(key: PrivateKey, content: bytes) -> dict[str, Any]:
    """One signature as `TestRegistry.sign` takes it."""
    return {"payload": content, "dev.cosignproject.cosign/signature": b64(sign_bytes(key, content))}


def b64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def pem(key: PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


class IdentityService:
    """An authority that certifies who signs, and a log that promises to hold signatures: Fulcio and Rekor in small."""

    def __init__(self, *, days: tuple[int, int] = (-30, 30)) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.log = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test root")])
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        self.root = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(self.key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() + datetime.timedelta(days=days[0]))
            .not_valid_after(now() + datetime.timedelta(days=days[1]))
            .add_extension(x509.BasicConstraints(True, 1), critical=True)
            .add_extension(usage, critical=True)
            .sign(self.key, hashes.SHA256())
        )

    @property
    def root_pem(self) -> str:
        return self.root.public_bytes(Encoding.PEM).decode()

    def sign(
        self,
        content: bytes,
        subject: str,
        issuer: str,
        *,
        signed_at: datetime.datetime | None = None,
        code_signing: bool = True,
        logged: bytes | None = None,
        log: ec.EllipticCurvePrivateKey | None = None,
    ) -> dict[str, Any]:
        """A signature by a throwaway key, its certificate, and the log's promise. `logged` is another payload."""
        at = signed_at or now()
        key = ec.generate_private_key(ec.SECP256R1())
        text = issuer.encode()
        kind = ExtendedKeyUsageOID.CODE_SIGNING if code_signing else ExtendedKeyUsageOID.SERVER_AUTH
        leaf = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(self.root.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now() - datetime.timedelta(minutes=1))
            .not_valid_after(now() + datetime.timedelta(minutes=10))
            .add_extension(x509.ExtendedKeyUsage([kind]), critical=False)
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(subject)]), critical=True)
            .add_extension(
                x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.57264.1.8"), bytes([0x0C, len(text)]) + text),
                critical=False,
            )
            .sign(self.key, hashes.SHA256())
        )
        certificate = leaf.public_bytes(Encoding.PEM)
        signature = sign_bytes(key, content)
        body = {
            "apiVersion": "0.0.1",
            "kind": "hashedrekord",
            "spec": {
                "data": {"hash": {"algorithm": "sha256", "value": hashlib.sha256(logged or content).hexdigest()}},
                "signature": {"content": b64(signature), "publicKey": {"content": b64(certificate)}},
            },
        }
        der = self.log.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        entry = {
            "body": b64(json.dumps(body).encode()),
            "integratedTime": int(at.timestamp()),
            "logID": hashlib.sha256(der).hexdigest(),
            "logIndex": 7,
        }
        promise = sign_bytes(log or self.log, json.dumps(entry, sort_keys=True, separators=(",", ":")).encode())
        return {
            "payload": content,
            "dev.cosignproject.cosign/signature": b64(signature),
            "dev.sigstore.cosign/certificate": certificate.decode(),
            "dev.sigstore.cosign/bundle": json.dumps({"SignedEntryTimestamp": b64(promise), "Payload": entry}),
        }
