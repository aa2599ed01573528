"""A TCP connection that misbehaves on demand: between client, broker and node.

One thread accepts, two more carry the bytes of each connection. The tests turn the faults on
and off from outside; what was accepted before is under the same faults as what comes later.
"""

from __future__ import annotations

import socket
import struct
import threading
import time
from contextlib import suppress

PIECE_BYTES = 1 << 16
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset instead of a farewell


class FaultProxy:
    """Forwards connections to a target ("host:port")."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.delay_s = 0.0  # of every piece, in each direction
        self.resets = 0  # connections that were reset so far
        self.carried = 0  # bytes so far, in both directions
        self._flowing = (threading.Event(), threading.Event())  # to the target, and back
        for way in self._flowing:
            way.set()
        self._cut_after = 0  # bytes of a connection; 0: never
        self._lock = threading.Lock()
        self._connections: list[tuple[socket.socket, socket.socket]] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """Break all connections; what is on its way in them is lost."""
        with self._lock:
            connections, self._connections = self._connections, []
        for connection in connections:
            self._break(connection)

    def cut_after(self, count: int) -> None:
        """Break each connection once it has carried so many bytes in one direction."""
        self._cut_after = count

    def blackhole(self, there: bool = True, back: bool = True) -> None:
        """Carry nothing any more, to the target or back; nothing breaks, and nobody is refused."""
        for way, stops in zip(self._flowing, (there, back), strict=True):
            if stops:
                way.clear()

    def heal(self) -> None:
        """Work as a network should. What was held back arrives, as TCP sees to it."""
        self._cut_after = 0
        self.delay_s = 0.0
        for way in self._flowing:
            way.set()

    def close(self) -> None:
        """Refuse new connections and break those that there are."""
        self.heal()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self._flowing[0].wait()
            try:
                far = socket.create_connection(self._target)
            except OSError:
                self._break((near,))
                continue
            for sock in (near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = (near, far)
            with self._lock:
                self._connections.append(connection)
            for way, ends in zip(self._flowing, (connection, connection[::-1]), strict=True):
                threading.Thread(
                    target=self._carry, args=(*ends, way, connection), daemon=True
                ).start()

    def _carry(
        self,
        source: socket.socket,
        sink: socket.socket,
        way: threading.Event,
        connection: tuple[socket.socket, ...],
    ) -> None:
        carried = 0
        try:
            while data := source.recv(PIECE_BYTES):
                way.wait()
                if self.delay_s:
                    time.sleep(self.delay_s)
                left = self._cut_after - carried if self._cut_after else len(data)
                sink.sendall(data[: max(0, left)])
                carried += len(data)
                self.carried += len(data)  # roughly: threads may overwrite each other's
                if left < len(data):
                    break
        except OSError:
            pass
        self._break(connection)

    def _break(self, connection: tuple[socket.socket, ...]) -> None:
        self.resets += 1
        for sock in connection:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
            sock.close()
