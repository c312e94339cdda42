"""What a process can no longer do once it has given up what a worker does not need."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ATTEMPTS = """
import ctypes, json, os, socket, subprocess, sys, threading
from pathlib import Path
from engine.sandbox import give_up
model, secret, parent = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
given_up = give_up([model])
def attempt(action):
    try:
        action()
        return "done"
    except OSError as error:
        return type(error).__name__
results = {}
def run():
    results.update({
        "read model": attempt(model.read_bytes),
        "read secret": attempt(secret.read_bytes),
        "list folder": attempt(lambda: list(secret.parent.iterdir())),
        "write file": attempt(lambda: (secret.parent / "new").write_text("x")),
        "change model": attempt(lambda: model.open("r+b")),
        "delete model": attempt(model.unlink),
        "internet socket": attempt(lambda: socket.socket(socket.AF_INET)),
        "unix socket": attempt(lambda: socket.socket(socket.AF_UNIX)),
        "run program": attempt(lambda: subprocess.run(["/bin/true"])),
        "signal parent": attempt(lambda: os.kill(parent, 0)),
        "read parent": attempt(lambda: Path(f"/proc/{parent}/environ").read_bytes()),
        "import": attempt(lambda: __import__("zipfile")),
    })
thread = threading.Thread(target=run)
thread.start()
thread.join()
print(json.dumps([given_up, results]))
"""


def test_only_the_model_can_be_read_and_nothing_else_be_done(tmp_path: Path) -> None:
    folders = [tmp_path / "models", tmp_path / "home"]
    for folder in folders:
        folder.mkdir()
    model, secret = folders[0] / "model.gguf", folders[1] / "secret"
    model.write_text("weights")
    secret.write_text("key")
    argv = [sys.executable, "-c", ATTEMPTS, str(model), str(secret), str(os.getpid())]
    ran = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60, check=True)
    given_up, results = json.loads(ran.stdout)
    if "files" not in given_up or "programs" not in given_up:
        pytest.skip(f"this kernel only lets a process give up {given_up}")
    assert results.pop("read model") == "done"
    assert results.pop("import") == "done"
    assert set(results.values()) == {"PermissionError"}, results
    assert model.read_text() == "weights"
