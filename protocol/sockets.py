"""The sockets of one bus, each with its limits, and how one thread waits for all of them.

ZeroMQ tells of news on a socket by a descriptor, once: so `undrained` has those that may have
messages without a further signal.
"""

from __future__ import annotations

import os
import selectors
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import zmq

from .arrivals import Arrival, Route
from .wire import FRAME_BYTES_MAX, INCOMPLETE_MAX_BYTES

CAN_LIMIT = sys.platform != "win32"
if CAN_LIMIT:
    import resource

HANDSHAKE_MS = 3000  # silent connections are closed after this
HEARTBEAT_MS = 1000  # ZMTP's own, which notices silent partitions
HEARTBEAT_TIMEOUT_MS = 3000
HIGH_WATER = 1000  # messages; links keep less than that unacknowledged
NEVER_MS = 3_600_000  # long before it's over, the socket is closed
FAREWELL_MS = 300  # for what was said last, in the background, when a socket is closed
BACKLOG = 1024
TRY_S = 0.1  # how often what has no signal of its own is looked at
SOCKETS_MAX = 65_000  # of one process; two for each address that is dialled
DESCRIPTORS_MAX = 100_000  # asked of the system, if it allows that
MONITORED = struct.Struct("=Hi")  # an event (`zmq.Event`) and its value
MIN_LIBZMQ = (4, 3, 3)  # older ones have holes that need no authentication

# Contexts of buses that were isolated and aren't closed. Were they collected before their sockets,
# with which they are garbage when somebody has forgotten to close a bus, that would never end.
_unclosed: set[zmq.Context[zmq.Socket[bytes]]] = set()


def libraries() -> dict[str, str]:
    """Return the versions of what carries our messages."""
    return {"pyzmq": str(zmq.__version__), "libzmq": zmq.zmq_version()}


def read_monitor(monitor: zmq.Socket[bytes]) -> tuple[int, int]:
    """Return the next event that the monitor of a socket tells, and its value.

    The format is that of zmq_socket_monitor(3); `zmq.utils.monitor` knows it, too, but imports
    asyncio, a tenth of what starting a node takes. Raises `zmq.Again` when there is none.
    """
    event, value = MONITORED.unpack(monitor.recv_multipart(zmq.NOBLOCK)[0])
    return event, value


def room_for_payloads() -> int:
    """Return how many bytes of payloads that have come in part this machine can hold."""
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError):  # Windows
        return INCOMPLETE_MAX_BYTES
    return min(memory // 2, INCOMPLETE_MAX_BYTES)


def raise_limits() -> None:
    """Let this process have as many connections as the system allows it.

    For a process that serves many; to be called before its first socket is opened.
    """
    zmq.Context.instance().set(zmq.MAX_SOCKETS, SOCKETS_MAX)
    if not CAN_LIMIT:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS_MAX if hard == resource.RLIM_INFINITY else min(hard, DESCRIPTORS_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def limit_of_files() -> int | str:
    """Return how many descriptors this process may have, to tell people."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] if CAN_LIMIT else "unknown"


def open_socket(context: zmq.Context[zmq.Socket[bytes]], kind: int) -> zmq.Socket[bytes]:
    """Make a socket with every limit set. No other place may open one."""
    if zmq.zmq_version_info() < MIN_LIBZMQ:
        raise RuntimeError(f"libzmq {zmq.zmq_version()} has known holes; upgrade pyzmq")
    opened = context.socket(kind)
    opened.setsockopt(zmq.LINGER, 0)  # an end is said by message, never left to linger
    opened.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
    opened.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
    opened.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
    opened.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
    opened.setsockopt(zmq.HEARTBEAT_TTL, HEARTBEAT_TIMEOUT_MS)
    opened.setsockopt(zmq.SNDHWM, HIGH_WATER)
    opened.setsockopt(zmq.RCVHWM, HIGH_WATER)
    opened.setsockopt(zmq.BACKLOG, BACKLOG)
    if kind == zmq.ROUTER:
        opened.setsockopt(zmq.ROUTER_MANDATORY, 1)
    else:
        # A new connection gets a new socket. With -1, or IMMEDIATE, what came just before the end
        # would be thrown away unread.
        opened.setsockopt(zmq.RECONNECT_IVL, NEVER_MS)
    return opened


class Sockets:
    """What one thread has open, waits for, and has been told by all of it."""

    def __init__(self, ahead: int) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self.selector = selectors.DefaultSelector()
        self.arrivals: deque[Arrival] = deque()
        self.undrained: dict[zmq.Socket[bytes], Route] = {}
        self._ahead = ahead
        self._own: zmq.Context[zmq.Socket[bytes]] | None = None  # those with secrets have one
        self._bell, self._button = socket.socketpair()  # not a pipe: Windows can't wait for one
        for end in (self._bell, self._button):
            end.setblocking(False)
        self._bell_fd = self._bell.fileno()
        self._woken = False
        self._sleeping = False
        self.was_stirred = False  # whether anything but `wake` has ended the last `wait` early
        self.watch(self._bell_fd, self._on_wake)

    @property
    def is_isolated(self) -> bool:
        """Whether the context is shared with nobody."""
        return self._own is not None

    def isolate(self) -> None:
        """Use a context of our own: the place where ZeroMQ asks about peers is one for each."""
        if self._own is None:
            limit = self.context.get(zmq.MAX_SOCKETS)
            self._own = self.context = zmq.Context()
            self._own.set(zmq.MAX_SOCKETS, limit)
            _unclosed.add(self._own)

    def open(self, kind: int) -> zmq.Socket[bytes]:
        """Make a socket that reads only so many messages ahead."""
        opened = open_socket(self.context, kind)
        opened.setsockopt(zmq.RCVHWM, self._ahead)
        return opened

    def close(self) -> None:
        """All sockets are closed: end what they needed."""
        self.selector.close()
        self._bell.close()
        self._button.close()
        if self._own is not None:
            self._own.term()  # all its sockets are closed: it waits for `FAREWELL_MS` at most
            _unclosed.discard(self._own)

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` from `poll` whenever the descriptor is readable."""
        self.selector.register(fd, selectors.EVENT_READ, (callback, None))

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor; call it before the descriptor is closed."""
        with suppress(KeyError):
            self.selector.unregister(fd)

    def wake(self) -> None:
        """Make `poll` return soon. The only method that other threads may call."""
        self._woken = True
        if self._sleeping:
            try:  # noqa: SIM105 - `suppress` would cost more than all the rest
                self._button.send(b"w")
            except OSError:  # it is rung already, or the bus is closed
                pass

    def wait(self, timeout_s: float) -> None:
        """Wait until there is something to do, and call those who watch for it."""
        self._sleeping = True  # before looking at _woken: see wake()
        ready = self.selector.select(0.0 if self._woken else max(0.0, timeout_s))
        self._sleeping = False
        self._woken = False
        self.was_stirred = False
        for key, events in ready:
            on_read, on_write = key.data
            self.was_stirred |= key.fd != self._bell_fd
            if events & selectors.EVENT_READ:
                on_read()
            if events & selectors.EVENT_WRITE and on_write is not None:
                on_write()

    def register(self, source: zmq.Socket[bytes], callback: Callable[[], None]) -> None:
        """Watch a socket. Its descriptor only tells of news after the first look at it."""
        self.watch(_descriptor(source), callback)
        source.getsockopt(zmq.EVENTS)

    def unregister(self, source: zmq.Socket[bytes]) -> None:
        """Forget a socket; call it before the socket is closed."""
        self.unwatch(_descriptor(source))

    def _on_wake(self) -> None:
        with suppress(BlockingIOError):
            self._bell.recv(4096)


def _descriptor(source: zmq.Socket[bytes]) -> int:
    return int(source.getsockopt(zmq.FD))


def endpoint_of(address: str) -> str:
    """Return how ZeroMQ writes an address."""
    return address if "://" in address else f"tcp://{address}"
