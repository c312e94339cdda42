"""Starts two programs of its own user, as any program of that user could, and tries to read the memory of both.

The first one is plain Python, the second is its arguments, from the line on that says where it listens. Prints how
each try ended. It gives up the right to trace anything (as root it has it) before it starts them."""

import ctypes
import json
import os
import subprocess
import sys

CAP_SYS_PTRACE = 19
PR_CAPBSET_DROP = 24


def peek(pid: int) -> str:
    """How reading the first page of a process's memory ends."""
    try:
        with open(f"/proc/{pid}/maps") as maps:
            start = int(maps.readline().partition("-")[0], 16)
        with open(f"/proc/{pid}/mem", "rb") as memory:
            memory.seek(start)
            return f"{len(memory.read(16))} bytes"
    except OSError as exc:
        return type(exc).__name__


def look(command: list[str], mark: str) -> dict[str, object]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        said = next((line for line in process.stdout if mark in line), "")
        with open(f"/proc/{process.pid}/limits") as limits:
            core = next(line.split()[4:6] for line in limits if line.startswith("Max core file size"))
        return {"ready": bool(said), "memory": peek(process.pid), "core": core}
    finally:
        process.terminate()
        process.wait()


if __name__ == "__main__":
    if sys.argv[1] != "--dropped":
        ctypes.CDLL(None).prctl(PR_CAPBSET_DROP, CAP_SYS_PTRACE, 0, 0, 0)
        os.execv(sys.executable, [sys.executable, __file__, "--dropped", *sys.argv[1:]])
    plain = [sys.executable, "-c", "print('ready', flush=True); input()"]
    print(json.dumps([look(plain, "ready"), look(sys.argv[2:], "listening")]))
