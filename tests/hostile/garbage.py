"""Connections that begin like those of ZeroMQ, or not at all, and go wrong anywhere."""

from __future__ import annotations

import random
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from dispy.protocol import messages as m
from dispy.protocol.wire import FRAME_BYTES_MAX, Codec

AT_ONCE = 50  # connections that are open at a time
HUGE = 8 << 30  # bytes of a frame, as its header says
BURST = 1 << 16  # ... and what comes of them
POUR = 2 * FRAME_BYTES_MAX  # ... and what comes of them until somebody hangs up
TURN_S = 0.01  # of `Calls`
PACE_S = 0.1  # between two bytes of who is slow
LOOK_AFTER = 10  # connections


def greeting(mechanism: bytes, version: bytes = b"\x03\x01") -> bytes:
    """Return how a peer of ZeroMQ begins."""
    signature = b"\xff" + bytes(7) + b"\x01\x7f"
    return signature + version + mechanism.ljust(20, b"\0") + bytes(32)


def command(name: bytes, body: bytes) -> bytes:
    """Return a command frame."""
    content = bytes([len(name)]) + name + body
    return struct.pack(">BB", 4, len(content)) + content if len(content) < 256 else b""


def message(body: bytes) -> bytes:
    """Return a message of one frame."""
    if len(body) < 256:
        return struct.pack(">BB", 0, len(body)) + body
    return struct.pack(">BQ", 2, len(body)) + body


def ready() -> bytes:
    """Return the handshake of a socket without security."""
    kind, name = b"Socket-Type", b"DEALER"
    properties = bytes([len(kind)]) + kind + struct.pack(">I", len(name)) + name
    return command(b"READY", properties)


def giant(size: int) -> bytes:
    """Return the header of a command that is so long."""
    return struct.pack(">BQ", 6, size)


def hello(mechanism: bytes) -> bytes:
    """Return what comes after the greeting of who dials."""
    return command(b"HELLO", b"\x01\x00" + bytes(192)) if mechanism == b"CURVE" else ready()


def beginnings(mechanism: bytes) -> dict[str, bytes]:
    """Return what may be said, and no more, at a door with a mechanism."""
    whole, first = greeting(mechanism), hello(mechanism)
    return {
        "nothing": b"",
        "a signature": whole[:10],
        "half a greeting": whole[:32],
        "a greeting": whole,
        "half a hello": whole + first[: len(first) // 2],
    }


def frames() -> list[bytes]:
    """Return headers that a daemon understands, said by nobody that it knows."""
    codec = Codec()
    who = m.Identity("node", "n" * 32, "\x1b[31mnode", "0", "3", "Linux", 2)
    several: list[m.Frame] = [
        m.Hello(1, 0, who, token=bytes(32), proof=bytes(32)),
        m.Hello(9, 0, who),
        m.Welcome(0, who, "session", 1),
        m.Envelope(1, 1, 0, [m.Holding([], [])]),
        m.Goodbye("bye"),
        m.Unknown(),
        m.Refused("no"),
        m.Relayed(1),
        m.Cached([(0, b"x" * 16)]),
        m.Nudge(),
    ]
    return [codec.encode(each)[0] for each in several]


FRAMES = frames()
NULL = greeting(b"NULL") + ready()


def session(chance: random.Random) -> bytes:
    """Make up all that a connection says."""
    kind = chance.randrange(9)
    if kind == 0:
        return chance.randbytes(chance.randrange(300))
    if kind == 1:
        return NULL + struct.pack(">BQ", 2, HUGE) + bytes(BURST)
    if kind == 2:
        return greeting(b"CURVE") + command(b"HELLO", b"\x01\x00" + chance.randbytes(192))
    if kind == 3:
        return greeting(b"PLAIN") + command(b"HELLO", b"\x01a\x01b")
    if kind == 4:
        return chance.choice(
            (b"GET / HTTP/1.1\r\n\r\n", b"\x01\x00", b"\xff" * 64, b"\x16\x03\x01")
        )
    if kind == 5:
        return NULL + b"".join(message(chance.choice((b"\x91" * 5000, b"\xdd" + b"\xff" * 4)))
                               for _ in range(3))  # fmt: skip
    data = bytearray(NULL + b"".join(message(chance.choice(FRAMES)) for _ in range(3)))
    if kind > 6:
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
    return bytes(data[: chance.choice((len(data), chance.randrange(len(data))))])


class Storm:
    """Many such connections to some addresses, a few at a time."""

    def __init__(self, addresses: list[str], seed: int) -> None:
        self._chance = random.Random(seed)
        self._addresses = [(host, int(port)) for host, _, port in
                           (each.rpartition(":") for each in addresses)]  # fmt: skip
        self._open: deque[socket.socket] = deque()
        self._slow: list[tuple[socket.socket, bytes]] = []
        self._silent: list[socket.socket] = []

    def _connect(self, number: int) -> socket.socket:
        connection = socket.create_connection(self._addresses[number % len(self._addresses)], 5.0)
        connection.setblocking(False)
        return connection

    def keep_silent(self, count: int) -> None:
        """Connect, and say nothing."""
        self._silent += [self._connect(number) for number in range(count)]

    def be_slow(self, count: int) -> None:
        """Connect, and say a byte now and then: see `drip`."""
        self._slow += [(self._connect(number), session(self._chance)) for number in range(count)]

    def drip(self) -> None:
        """Say one more byte on each slow connection."""
        rest = []
        for connection, data in self._slow:
            with suppress(ConnectionError):  # it may have been hung up
                connection.send(data[:1])
            rest.append((connection, data[1:] or NULL))
        self._slow = rest

    def rage(self, count: int, look: Callable[[], None] = lambda: None) -> None:
        """Open so many connections, and close each some time after it has said its part.

        ``look`` is called again and again meanwhile.
        """
        for number in range(count):
            connection = self._connect(number)
            with suppress(ConnectionError):  # it may have been hung up
                connection.send(session(self._chance))
            self._open.append(connection)
            if number % LOOK_AFTER == 0:
                look()
            while len(self._open) > AT_ONCE:
                self._open.popleft().close()

    def end(self) -> None:
        """Close all."""
        for connection in (*self._open, *self._silent, *(each for each, _ in self._slow)):
            connection.close()
        self._open.clear()
        self._silent.clear()
        self._slow.clear()


class Call:
    """A connection that says its part, and is open until the other side ends it."""

    def __init__(self, address: str, what: str, data: bytes, pace_s: float = 0.0) -> None:
        """Connect. With ``pace_s``, one byte is said after each such time."""
        host, _, port = address.rpartition(":")
        self.began = time.monotonic()  # before the other side can know of it
        self.connection = socket.create_connection((host, int(port)), 5.0)
        self.connection.setblocking(False)
        self.name = f"{what} at {address}"
        self.took_s = 0.0  # until the other side has hung up
        self._rest = memoryview(data)
        self._pace_s = pace_s
        self._due = self.began

    def speak(self, now: float) -> None:
        """Say as much as the pace and the system allow. Raises `ConnectionError` if hung up."""
        if not self._rest or now < self._due:
            return
        self._due = now + self._pace_s
        with suppress(BlockingIOError):  # later, then
            said = self.connection.send(self._rest[:1] if self._pace_s else self._rest)
            self._rest = self._rest[said:]

    def listen(self) -> None:
        """Read what has come. Raises `ConnectionError` if the other side has hung up."""
        if not self.connection.recv(4096):
            raise ConnectionResetError


class Calls:
    """Connections that a test never ends: it waits for the other side to do so."""

    def __init__(self) -> None:
        self.over: list[Call] = []
        self._selector = selectors.DefaultSelector()

    def __enter__(self) -> Calls:
        return self

    def __exit__(self, *_: object) -> None:
        for call in self.open:
            call.connection.close()
        self._selector.close()

    @property
    def open(self) -> list[Call]:
        """Those that nobody has ended."""
        return [key.data for key in self._selector.get_map().values()]

    def make(self, call: Call) -> None:
        """Take one on."""
        self._selector.register(call.connection, selectors.EVENT_READ, call)

    def attend(self) -> None:
        """Let each say something, and wait a moment for what comes back."""
        for call in self.open:
            try:
                call.speak(time.monotonic())
            except ConnectionError:
                self._end(call)
        for key, _ in self._selector.select(TURN_S):
            try:
                key.data.listen()
            except ConnectionError:
                self._end(key.data)

    def _end(self, call: Call) -> None:
        call.took_s = time.monotonic() - call.began
        self._selector.unregister(call.connection)
        call.connection.close()
        self.over.append(call)
