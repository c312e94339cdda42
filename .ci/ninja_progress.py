"""Show a build's `[done/all]` counter as one line, and keep the whole output in a file.

Knows nothing of what is built: output on stdin, the file as argument.
"""

import re
import sys
import time

COUNTER = re.compile(rb"\[(\d+)/(\d+)\]")
QUIET_EVERY_S = 10.0
"""Without a terminal, a line this often: enough to see that it goes on."""


def main() -> None:
    is_terminal = sys.stdout.isatty()
    shown_at = started = time.monotonic()
    last = ""
    with open(sys.argv[1], "wb") as log:
        for line in sys.stdin.buffer:
            log.write(line)
            if not (found := COUNTER.search(line)):
                continue
            done, total = (int(text) for text in found.groups())
            last = f"    [{done}/{total}] {100 * done // max(total, 1)}% after {time.monotonic() - started:.0f} s"
            if is_terminal:
                print(f"\r{last}", end="", flush=True)
            elif time.monotonic() - shown_at >= QUIET_EVERY_S:
                shown_at = time.monotonic()
                print(last, flush=True)
    if last:
        print(f"\r{last}" if is_terminal else last, flush=True)


if __name__ == "__main__":
    main()
