"""A well-behaved server on stdin and stdout: `friendly.py '{"page": 2}'`, options as behaviour.py has them."""

import json
import sys
import threading

from behaviour import Behaviour

lock = threading.Lock()


def send(message: str) -> None:
    with lock:
        sys.stdout.write(message + "\n")
        sys.stdout.flush()


def later(delay_s: float, work: object) -> None:
    timer = threading.Timer(delay_s, work)  # type: ignore[arg-type]
    timer.daemon = True
    timer.start()


server = Behaviour(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {}, send, later)
print("friendly server is up", file=sys.stderr, flush=True)
for line in sys.stdin:
    server.handle(line, send)
