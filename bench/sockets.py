"""The floor of the bus: a raw pyzmq ROUTER and DEALER over loopback TCP, in two processes.

``python -m bench.sockets PORT`` is the far end: it sends everything back.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median
from typing import Any, NamedTuple, TypeAlias

import zmq

HOST = "127.0.0.1"
READY = b"ready"
STOP = b"stop"
STOP_S = 10.0
TIMEOUT_MS = 60_000  # a far end that died must not hang the run
REPEATS = 3

Socket: TypeAlias = "zmq.Socket[bytes]"


class Line(NamedTuple):
    """An open connection to the far end."""

    socket: Socket
    peer: bytes


@contextmanager
def line() -> Iterator[Line]:
    """Start the far end and wait until it is connected."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        _without_limits(socket)
        socket.rcvtimeo = socket.sndtimeo = TIMEOUT_MS
        port = socket.bind_to_random_port(f"tcp://{HOST}")
        far_end = subprocess.Popen([sys.executable, "-m", "bench.sockets", str(port)])
        try:
            peer, _ = socket.recv_multipart()
            yield Line(socket, peer)
            socket.send_multipart([peer, STOP])
            far_end.wait(STOP_S)
        finally:
            far_end.kill()
            far_end.wait()


def _without_limits(socket: Socket) -> None:
    """A full ROUTER drops messages, which would hang the measurement; it has a window anyway."""
    socket.set_hwm(0)
    socket.linger = 0


def send_back(port: int) -> None:
    """Be the far end."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        _without_limits(socket)
        socket.connect(f"tcp://{HOST}:{port}")
        socket.send(READY)
        while True:
            message: Any = socket.recv(copy=False)
            if len(message) == len(STOP) and message.bytes == STOP:
                return
            socket.send(message, copy=False)


def turns_per_s(count: int, size_bytes: int, in_flight: int) -> float:
    """Rate at which messages go to the far end and come back."""
    with line() as connection:
        _turns_per_s(connection, count // 10, size_bytes, in_flight)  # warms up
        rates = [_turns_per_s(connection, count, size_bytes, in_flight) for _ in range(REPEATS)]
        return median(rates)


def _turns_per_s(connection: Line, count: int, size_bytes: int, in_flight: int) -> float:
    socket, peer = connection
    frames = [peer, bytes(size_bytes)]
    began = time.perf_counter()
    for _ in range(min(in_flight, count)):
        socket.send_multipart(frames)
    for _ in range(max(0, count - in_flight)):
        socket.recv_multipart()
        socket.send_multipart(frames)
    for _ in range(min(in_flight, count)):
        socket.recv_multipart()
    return count / (time.perf_counter() - began)


def payload_mb_per_s(size_bytes: int, count: int, in_flight: int) -> float:
    """Rate at which bytes go there and come back, both ways added, without copies here."""
    with line() as connection:
        rates = [_mb_per_s(connection, size_bytes, count, in_flight) for _ in range(REPEATS)]
        return median(rates)


def _mb_per_s(connection: Line, size_bytes: int, count: int, in_flight: int) -> float:
    payload = bytes(range(256)) * (size_bytes // 256)
    began = time.perf_counter()
    for _ in range(min(in_flight, count)):
        _send_large(connection, payload)
    for _ in range(max(0, count - in_flight)):
        _receive_large(connection)
        _send_large(connection, payload)
    for _ in range(min(in_flight, count)):
        _receive_large(connection)
    return 2 * len(payload) * count / (time.perf_counter() - began) / 1e6


def _send_large(connection: Line, payload: bytes) -> None:
    connection.socket.send(connection.peer, zmq.SNDMORE)
    connection.socket.send(payload, copy=False)


def _receive_large(connection: Line) -> None:
    connection.socket.recv()
    connection.socket.recv(copy=False)


if __name__ == "__main__":
    send_back(int(sys.argv[1]))
