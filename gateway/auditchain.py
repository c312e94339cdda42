"""The chain that ties audit records together, and the signed checkpoints that hold it from outside.

Each line ends in its number and a SHA-256 over the one before it and itself, so that a changed, missing, added or
moved line shows at the first place where it matters. Checkpoints are signed and lie in a file of their own, so that a
chain made anew and a file cut short show, too. Knows lines; not what a record says.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from gateway import durable

FIRST: Final = b"0" * 64
"""What the first record follows."""
_LINE: Final = re.compile(rb'(\{.*,"seq":([1-9][0-9]{0,17})),"chain":"([0-9a-f]{64})"\}\n', re.DOTALL)
_sha256: Final = hashlib.sha256()
Opened = Callable[[], AbstractContextManager[Sequence[tuple[Path, BinaryIO]]]]
"""Opens every file of the chain, oldest first."""


def sealed(body: bytes, seq: int, before: bytes) -> tuple[bytes, bytes]:
    """A record's JSON object as its line in the file, and what the next one follows."""
    numbered = b'%b,"seq":%d' % (body[:-1], seq)
    chain = _sha256.copy()
    chain.update(before)
    chain.update(numbered)
    after = chain.hexdigest().encode()
    return b'%b,"chain":"%b"}\n' % (numbered, after), after


def place(line: bytes) -> tuple[int, bytes] | None:
    """A line's number and chain value; None if it has none."""
    found = _LINE.fullmatch(line)
    return (int(found[2]), found[3]) if found is not None else None


class Checkpoint(msgspec.Struct, frozen=True):
    """Record `seq` had this chain value, says whoever holds the key."""

    seq: int
    chain: str
    at: float
    signature: str = ""

    def statement(self) -> bytes:
        return f"lockgate audit checkpoint 1\n{self.seq}\n{self.chain}\n{self.at}".encode()


class Key:
    """The key that signs checkpoints, in a file only its owner can read."""

    def __init__(self, private: Ed25519PrivateKey) -> None:
        self._private = private
        self.public = private.public_key().public_bytes_raw()

    @classmethod
    def load(cls, path: Path) -> Key:
        """The key in the file; made if there is none.

        Raises:
            OSError, ValueError: it cannot be read or written, or is no key.
        """
        try:
            return cls.read(path)
        except FileNotFoundError:
            raw = Ed25519PrivateKey.generate().private_bytes_raw()
            durable.write(path, raw)  # half a key would stop all signing
        return cls(Ed25519PrivateKey.from_private_bytes(raw))

    @classmethod
    def read(cls, path: Path) -> Key:
        """The key in the file.

        Raises:
            OSError, ValueError: there is none, or it cannot be read.
        """
        return cls(Ed25519PrivateKey.from_private_bytes(path.read_bytes()))

    def sign(self, checkpoint: Checkpoint) -> Checkpoint:
        signature = base64.b64encode(self._private.sign(checkpoint.statement())).decode()
        return msgspec.structs.replace(checkpoint, signature=signature)


def is_signed(checkpoint: Checkpoint, public: bytes) -> bool:
    try:
        signature = base64.b64decode(checkpoint.signature, validate=True)
        Ed25519PublicKey.from_public_bytes(public).verify(signature, checkpoint.statement())
    except (InvalidSignature, ValueError):
        return False
    return True


@dataclass
class Verifier:
    """Follows the chain line by line. `problem` is what is wrong with the first bad one."""

    seq: int = 0
    chain: bytes = FIRST
    problem: str = ""

    def take(self, line: bytes, held: str | None = None) -> bool:
        """Whether the next line is what was written; `held` is what a checkpoint says of it."""
        found = _LINE.fullmatch(line)
        if found is None:
            self.problem = "is no whole record"
            return False
        seq = int(found[2])
        if seq != self.seq + 1:
            self.problem = f"has the number {seq} where {self.seq + 1} must follow: records are missing, added or moved"
            return False
        chain = _sha256.copy()
        chain.update(self.chain)
        chain.update(found[1])
        if chain.hexdigest().encode() != found[3]:
            self.problem = "does not follow from the record before it: it or that one was changed"
            return False
        if held is not None and held.encode() != found[3]:
            self.problem = "is another one than the signed checkpoint says: the records up to it were written anew"
            return False
        self.seq, self.chain = seq, found[3]
        return True


@dataclass(frozen=True)
class Report:
    """What came of a verification. `where` and `problem` are empty if everything is as it was written."""

    records: int
    checkpoints: int
    unsigned: int
    """Records after the last checkpoint: those could have been cut off or written anew."""
    where: str = ""
    problem: str = ""


def verify(opened: Opened, checkpoints: Path, public: bytes) -> Report:
    """Follow the chain through all files, oldest first, and hold it against every checkpoint. They are opened once the
    checkpoints are read: then they hold all that was signed, however much is written meanwhile.

    Raises:
        OSError: a file cannot be read.
    """
    held: dict[int, str] = {}
    for number, checkpoint in enumerate(_checkpoints(checkpoints), 1):
        if checkpoint is None or not is_signed(checkpoint, public):
            return Report(0, len(held), 0, f"{checkpoints}:{number}", "is no checkpoint signed with the key")
        if held.setdefault(checkpoint.seq, checkpoint.chain) != checkpoint.chain:
            problem = f"contradicts an earlier one about record {checkpoint.seq}: others were in its place"
            return Report(0, len(held), 0, f"{checkpoints}:{number}", problem)
    verifier = Verifier()
    path = None
    with opened() as files:
        for path, file in files:
            for number, line in enumerate(file, 1):
                if not verifier.take(line, held.get(verifier.seq + 1)):
                    return Report(verifier.seq, len(held), 0, f"{path}:{number}", verifier.problem)
    last = max(held, default=0)
    if last > verifier.seq:
        problem = f"ends with record {verifier.seq}, but {last} was signed: records at its end are missing"
        return Report(verifier.seq, len(held), 0, str(path or checkpoints), problem)
    return Report(verifier.seq, len(held), verifier.seq - last)


def _checkpoints(path: Path) -> Iterator[Checkpoint | None]:
    """Each line of the file; None for one that is no checkpoint."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                yield msgspec.json.decode(line, type=Checkpoint)
            except msgspec.DecodeError:
                yield None


def last_checkpoint(path: Path) -> Checkpoint | None:
    """The newest one, whoever signed it."""
    found = None
    for checkpoint in _checkpoints(path):
        found = checkpoint or found
    return found
