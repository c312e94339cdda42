"""A way to a server on this machine that breaks after so many bytes, as often as it is told to.

Knows TCP only."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Literal

Direction = Literal["up", "down"]
PIECE = 16 * 1024


class CuttingProxy:
    """Forwards connections; `cut` breaks the next ones."""

    def __init__(self, port: int) -> None:
        self.cuts = 0
        """How often it has broken a connection."""
        self._target = port
        self._plan: list[tuple[Direction, int]] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()

    def cut(self, direction: Direction, after: int, times: int = 1) -> None:
        """Break `times` connections, each when so many bytes went that way through it."""
        with self._lock:
            self._plan += [(direction, after)] * times

    def serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            for source, sink, direction in ((near, far, "up"), (far, near, "down")):
                threading.Thread(target=self._forward, args=(source, sink, direction), daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _forward(self, source: socket.socket, sink: socket.socket, direction: Direction) -> None:
        n_bytes = 0
        with suppress(OSError):
            while data := source.recv(PIECE):
                n_bytes += len(data)
                with self._lock:
                    due = next((one for one in self._plan if one[0] == direction and n_bytes >= one[1]), None)
                    if due:
                        self._plan.remove(due)
                        self.cuts += 1
                if due:
                    break
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@contextmanager
def cutting_proxy(port: int) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(port)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join()
