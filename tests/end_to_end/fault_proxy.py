"""A TCP connection that misbehaves on demand: between client, broker and node.

One thread accepts, four more carry the bytes of each connection. The tests turn the faults on
and off from outside; what was accepted before is under the same faults as what comes later.
As a program it is a forwarder in a process of its own, which takes no time from the test's:
``fault_proxy.py LISTEN TARGET [DELAY_S]`` says where it listens, and its input ends it.
"""

from __future__ import annotations

import socket
import struct
import sys
import threading
import time
from collections import deque
from contextlib import suppress

PIECE_BYTES = 1 << 16
UNDERWAY_BYTES = 16 << 20  # a connection holds so many at a time, in each direction
QUEUE_BYTES = 1 << 18  # ... and so many that wait because it is slow
LOOK_S = 0.02  # a delay that changes is noticed so soon
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closing sends a reset instead of a farewell


class FaultProxy:
    """Forwards connections to a target ("host:port")."""

    def __init__(self, target: str, listen: str = "127.0.0.1:0") -> None:
        self._target = _parsed(target)
        family = socket.AF_INET6 if listen.startswith("[") else socket.AF_INET
        self._listener = socket.create_server(_parsed(listen), family=family)
        host, port = self._listener.getsockname()[:2]
        self.address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.delay_s = 0.0  # from when something goes in until it comes out, in each direction
        self.bytes_per_s = 0.0  # of each connection in each direction; 0: as fast as can be
        self.resets = 0  # connections that were reset so far
        self.carried = 0  # bytes so far, in both directions
        self.flowing = (threading.Event(), threading.Event())  # to the target, and back
        for way in self.flowing:
            way.set()
        self.cut_bytes = 0  # of a connection; 0: never
        self._lock = threading.Lock()
        self._connections: list[_Connection] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def reset(self) -> None:
        """Break all connections; what is on its way in them is lost."""
        for connection in self._all():
            self.end(connection)

    def half_open(self) -> None:
        """Break all connections at the target only: who has dialled isn't told, nor answered."""
        for connection in self._all():
            connection.deaf = True
            _break(connection.far)

    def cut_after(self, count: int) -> None:
        """Break each connection once it has carried so many bytes in one direction."""
        self.cut_bytes = count

    def blackhole(self, there: bool = True, back: bool = True) -> None:
        """Carry nothing any more, to the target or back; nothing breaks, and nobody is refused."""
        for way, stops in zip(self.flowing, (there, back), strict=True):
            if stops:
                way.clear()

    def heal(self) -> None:
        """Work as a network should. What was held back arrives, as TCP sees to it."""
        self.cut_bytes = 0
        self.delay_s = self.bytes_per_s = 0.0
        for way in self.flowing:
            way.set()

    def close(self) -> None:
        """Refuse new connections and break those that there are."""
        self.heal()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.reset()

    def end(self, connection: _Connection) -> None:
        """Break a connection at both ends."""
        with self._lock:
            if connection not in self._connections:
                return
            self._connections.remove(connection)
            self.resets += 1
        connection.over.set()
        for sock in (connection.near, connection.far):
            _break(sock)

    def _all(self) -> list[_Connection]:
        with self._lock:
            return list(self._connections)

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.flowing[0].wait()
            try:
                far = socket.create_connection(self._target)
            except OSError:
                self.resets += 1
                _break(near)
                continue
            for sock in (near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection = _Connection(near, far)
            with self._lock:
                self._connections.append(connection)
            for way, ends in zip(self.flowing, ((near, far), (far, near)), strict=True):
                _Direction(self, connection, *ends, way).start()


class _Connection:
    def __init__(self, near: socket.socket, far: socket.socket) -> None:
        self.near = near  # who has dialled
        self.far = far
        self.over = threading.Event()
        self.deaf = False  # at its target: what is said to it is lost


class _Direction:
    """What goes one way in a connection: a thread takes it in, and another hands it on."""

    def __init__(
        self,
        proxy: FaultProxy,
        connection: _Connection,
        source: socket.socket,
        sink: socket.socket,
        flows: threading.Event,
    ) -> None:
        self._proxy = proxy
        self._connection = connection
        self._source = source
        self._sink = sink
        self._flows = flows
        self._carried = 0
        self._underway: deque[tuple[float, bytes]] = deque()  # since when, and what
        self._underway_bytes = 0
        self._changed = threading.Condition()

    def start(self) -> None:
        for work in (self._take, self._hand_on):
            threading.Thread(target=work, daemon=True).start()

    def _take(self) -> None:
        """Take in what comes. The end of it comes through in its turn, too: nothing."""
        data = b"to begin with"
        while data:
            try:
                data = self._source.recv(PIECE_BYTES)
            except OSError:
                data = b""
            with self._changed:
                self._underway.append((time.monotonic(), data))
                self._underway_bytes += len(data)
                self._changed.notify()
                while self._is_full() and not self._connection.over.is_set():
                    self._changed.wait(LOOK_S)

    def _is_full(self) -> bool:
        proxy = self._proxy
        slow_bytes = QUEUE_BYTES + proxy.bytes_per_s * proxy.delay_s
        return self._underway_bytes > (slow_bytes if proxy.bytes_per_s else UNDERWAY_BYTES)

    def _hand_on(self) -> None:
        while True:
            with self._changed:
                while not self._underway:
                    self._changed.wait()
                since, data = self._underway[0]
            self._wait(since, len(data))
            deaf = self._connection.deaf
            if deaf and self._source is self._connection.far:
                return  # it has ended, and nobody is to know
            if not data or not (deaf or self._deliver(data)):
                self._proxy.end(self._connection)
                return
            with self._changed:
                self._underway.popleft()
                self._underway_bytes -= len(data)
                self._changed.notify()

    def _wait(self, since: float, size: int) -> None:
        """Return when it is time for a piece to come out."""
        proxy, over = self._proxy, self._connection.over
        if proxy.bytes_per_s:
            over.wait(size / proxy.bytes_per_s)
        while (left_s := since + proxy.delay_s - time.monotonic()) > 0 and not over.is_set():
            over.wait(min(left_s, LOOK_S))
        while not self._flows.wait(LOOK_S) and not over.is_set():
            pass

    def _deliver(self, data: bytes) -> bool:
        """Hand a piece over, or the part of it that comes before a cut; False: that was all."""
        proxy = self._proxy
        left = proxy.cut_bytes - self._carried if proxy.cut_bytes else len(data)
        try:
            self._sink.sendall(data[: max(0, left)])
        except OSError:
            return False
        self._carried += len(data)
        proxy.carried += len(data)  # roughly: threads may overwrite each other's
        return left >= len(data)


def _break(sock: socket.socket) -> None:
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from it
    sock.close()


def _parsed(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def main(listen: str, target: str, delay_s: str = "0") -> None:
    """Forward until the input ends."""
    proxy = FaultProxy(target, listen)
    proxy.delay_s = float(delay_s)
    print(proxy.address, flush=True)
    sys.stdin.read()
    proxy.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
