"""The command that the suite runs for each scenario of signing in: hands it on to `signing.py`, which is running.

Knows nothing; it is started with a bare interpreter, so it imports little.
"""

import json
import os
import socket
import sys


def main() -> int:
    port, url = sys.argv[1:]
    asked = {
        "url": url,
        "revision": os.environ["MCP_CONFORMANCE_PROTOCOL_VERSION"],
        "context": json.loads(os.environ.get("MCP_CONFORMANCE_CONTEXT", "{}")),
    }
    with socket.create_connection(("127.0.0.1", int(port))) as connection, connection.makefile("rw") as lines:
        lines.write(json.dumps(asked) + "\n")
        lines.flush()
        status = lines.readline()
        print(lines.read())
    return int(status or 2)


if __name__ == "__main__":
    sys.exit(main())
