"""The sockets of one process, and the loop that waits for them.

The only module that has sockets of ZeroMQ. A `Bus` has a listening ROUTER for each secret, any
number of dialled DEALERs, and other descriptors to watch; one thread owns it. A dialled socket
is one connection: when that breaks, the socket is closed and never used again.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import selectors
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import EllipsisType

import zmq
from zmq.utils.monitor import parse_monitor_message

from . import curve
from .arrivals import Arrival, Arrived, Down, HungUp, Route, Up
from .exchange import INCOMPLETE_MAX_BYTES
from .keys import Keys
from .listening import joined
from .logs import Seldom
from .lookup import Found, Lookups, hosts_of
from .messages import Buffer
from .wire import FRAME_BYTES_MAX, FRAMES_MAX

CAN_LIMIT = sys.platform != "win32"
if CAN_LIMIT:
    import resource

DRAIN_MAX = 200  # messages taken from one socket before the core gets its turn
HANDSHAKE_MS = 3000  # silent connections are closed after this
HEARTBEAT_MS = 1000  # ZMTP's own, which notices silent partitions
HEARTBEAT_TIMEOUT_MS = 3000
HIGH_WATER = 1000  # messages; links keep less than that unacknowledged
NEVER_MS = 3_600_000  # long before it's over, the socket is closed
FAREWELL_MS = 300  # for what was said last, in the background, when a socket is closed
LOOKUP_S = 5.0  # how long a name may take to be looked up
PROBE_S = 3.0  # how long a TCP connection may take
GREETING_S = 3.5  # ... and the handshake after it
BACKLOG = 1024
TRY_S = 0.1  # how often what has no signal of its own is looked at
ACCEPT_PAUSE_S = 1.0  # when there are no descriptors left, nobody is let in for so long
SOCKETS_MAX = 65_000  # of one process; two for each address that is dialled
DESCRIPTORS_MAX = 100_000  # asked of the system, if it allows that
MIN_LIBZMQ = (4, 3, 3)  # older ones have holes that need no authentication
NO_PEER = "what listens there doesn't answer: it hangs, or it isn't a dispy peer"

SECRETS_DIFFER = "the secrets differ: it has another one than this side; use the same on both"
NO_SECRET_THERE = "this side has a secret, and that one has none: use the same on both"
NO_SECRET_HERE = "it asks for a secret, and this side has none: use the same on both"
CLOSED = "the connection was closed"
UNKNOWN = "an address that has gone already"
ROUTE_BYTES = 5  # as ZeroMQ makes them; others are chosen by peers, which ours never do
TAKEN = (errno.EADDRINUSE, errno.EACCES)  # not to be tried with IPv4 only
OVERLOOK_S = 0.5  # to see the end of connections of our own; real peers may be among them
ACCEPTED_MAX = 10_000  # addresses and keys of accepted connections that are kept

# What it means when connections that want to be so (ours and theirs) end before they begin.
REASONS = {
    (curve.CURVE, curve.CURVE): SECRETS_DIFFER,
    (curve.CURVE, curve.NULL): NO_SECRET_THERE,
    (curve.NULL, curve.CURVE): NO_SECRET_HERE,
    (curve.NULL, curve.NULL): CLOSED,
}
DENIALS = {SECRETS_DIFFER, NO_SECRET_THERE, NO_SECRET_HERE}

log = logging.getLogger("dispy.transport")

READABLE = int(zmq.POLLIN)  # a plain number: operators of the flag itself are slow
EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED  # who listened a moment ago doesn't any more, or has hung up at once
)
DOOR_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_ACCEPT_FAILED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_DISCONNECTED
)
FAILED = {
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
}


def libraries() -> dict[str, str]:
    """Return the versions of what carries our messages."""
    return {"pyzmq": str(zmq.__version__), "libzmq": zmq.zmq_version()}


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


@functools.lru_cache(maxsize=64)
def _server_pair(keys: Keys) -> curve.KeyPair:
    return curve.server_pair(keys)


class Listener:
    """A ROUTER: all that listens with the same secret, and who has come there."""

    def __init__(
        self, door: int, keys: Keys | None, router: zmq.Socket[bytes], is_apart: bool
    ) -> None:
        self.door = door
        self.keys = keys
        self.is_apart = is_apart
        self.router = router
        self.suffix = bytes([door]) if door else b""  # so that no two have the same routes
        self.endpoints: list[str] = []
        self.monitor = router.get_monitor_socket(DOOR_EVENTS)
        self.peers: dict[int, str] = {}  # addresses of connections, by descriptor
        self.keys_of: dict[bytes, bytes] = {}  # public keys, by route
        self.failure = 0  # of the connection of which the monitor tells next


class Connection:
    """A dialled address: first a TCP probe that can tell why it fails, then a DEALER."""

    def __init__(self, route: int, address: str, choice: Choice | None = None) -> None:
        self.route = route
        self.address = address
        self.choice = choice  # what it is part of
        self.probe: socket.socket | None = None
        self.give_up_at = 0.0
        self.dealer: zmq.Socket[bytes] | None = None
        self.monitor: zmq.Socket[bytes] | None = None
        self.up = False
        self.answer: bytearray | None = None  # to the question how it wants to be spoken to
        self.failures = 0  # to agree with ZeroMQ there


class Choice:
    """A dialled name, or several hosts: all addresses are tried at once, one of them is kept.

    The first that is connected gets its route. They have routes of their own until then.
    """

    def __init__(self, route: int, address: str) -> None:
        self.route = route
        self.address = address
        self.give_up_at = time.monotonic() + LOOKUP_S  # if it hasn't been looked up by then
        self.is_looked_up = False
        self.tried: dict[int, str] = {}  # hosts of which nothing has come so far, by route
        self.failures: list[tuple[str, Down]] = []  # why the others don't work

    @property
    def name(self) -> str:
        return self.address.rpartition(":")[0].strip("[]")

    def failed(self) -> Down:
        """Return why none works."""
        downs = [down for _, down in self.failures]
        reasons = [f"{host}: {down.reason}" for host, down in self.failures]
        refused, denied = all(each.refused for each in downs), any(each.denied for each in downs)
        return Down(self.route, "; ".join(reasons), refused, denied)


class Bus:
    """Implements `arrivals.Transport` with sockets, and waits for all of them at once."""

    def __init__(self, keys: Keys | None = None, ahead: int = HIGH_WATER) -> None:
        """With ``keys``, all that is dialled and listened at is encrypted with them.

        ``ahead``: so many messages of a connection are read before somebody takes them.
        """
        self.keys = keys
        self._ahead = ahead
        self._pair = curve.random_pair() if keys is not None else curve.KeyPair(b"", b"")
        self.public_key = self._pair.public  # of all connections that are dialled; or empty
        self._own: zmq.Context[zmq.Socket[bytes]] | None = None  # those with secrets have one
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context.instance()
        self._zap: zmq.Socket[bytes] | None = None
        self._selector = selectors.DefaultSelector()
        self._listeners: list[Listener] = []
        self._listening: dict[zmq.Socket[bytes], Listener] = {}
        # Doors that are closed for a while, since accepting fails.
        self._closed: list[tuple[Listener, str]] = []
        self._closed_until = 0.0
        self._strangers = Seldom()
        self._is_overlooking = False
        self._connections: dict[int, Connection] = {}
        self._choices: dict[int, Choice] = {}
        self._lookups = Lookups(self.wake)
        self._last_route = 0
        self._arrivals: deque[Arrival] = deque()
        self._undrained: dict[zmq.Socket[bytes], Route] = {}  # may have messages without a signal
        self._is_paused = False
        self._kept: zmq.Socket[bytes] | None = None  # ... but for this one
        self._probing: set[int] = set()
        self._greeting: set[int] = set()  # connected, but ZeroMQ hasn't understood the other side
        self._bell, self._button = socket.socketpair()  # not a pipe: Windows can't wait for one
        for end in (self._bell, self._button):
            end.setblocking(False)
        self._hung_up = False
        self._woken = False
        self._sleeping = False
        self._owner: int | None = None
        self._process = os.getpid()
        self.watch(self._bell.fileno(), self._on_wake)
        if keys is not None:
            self._isolate()

    # -- opening and closing -------------------------------------------------------------

    def listen(
        self, address: str, keys: Keys | EllipsisType | None = ..., apart: bool = False
    ) -> str:
        """Listen at "host:port" (port 0: any free one) or "inproc://name"; return the address.

        The host "*" stands for all addresses of this machine. Peers need the secret of ``keys``,
        by default that of the bus; None: there is none. `Arrived.door` counts different keys, in
        the order of their first use here; a door that is ``apart`` counts as another one, and
        goes on while others have to `pause`. Raises `OSError` when it isn't possible to listen,
        for example because the port is taken.
        """
        listener = self._listener(self.keys if keys is ... else keys, apart)
        endpoint = _endpoint(address)
        is_new = endpoint.endswith(":0")
        for host in _hosts(endpoint):
            try:
                self._bind(listener, host)
                break
            except OSError as error:
                if error.errno in TAKEN or host == _hosts(endpoint)[-1]:
                    raise
        if address.startswith("inproc://"):
            return address
        bound = listener.router.getsockopt_string(zmq.LAST_ENDPOINT)
        listener.endpoints.append(bound)
        if address.startswith("*:"):
            return f"*:{bound.rpartition(':')[2]}" if is_new else address
        return bound.removeprefix("tcp://")

    def overlook(self) -> None:
        """Log nothing of those who have come and gone so far: they were sent by this process."""
        self._is_overlooking = True
        give_up_at = time.monotonic() + OVERLOOK_S
        for listener in self._listeners:
            self._on_hangup(listener)
            while listener.peers and time.monotonic() < give_up_at:
                listener.monitor.poll(int(TRY_S * 1000))
                self._on_hangup(listener)
        self._is_overlooking = False

    def close(self) -> None:
        """Close every socket at once; what was not sent is lost."""
        for route in (*self._choices, *self._connections):
            self.drop(route)
        is_forked = self._process != os.getpid()  # ZeroMQ's threads aren't here then
        for listener in self._listeners:
            self._unregister(listener.monitor)
            # When it is full, ZeroMQ's thread waits in it, and `disable_monitor` for that thread.
            if not is_forked:
                self._on_hangup(listener)
            listener.router.disable_monitor()
            listener.monitor.close(0)
            self._unregister(listener.router)
            listener.router.close(FAREWELL_MS)
        self._listeners.clear()
        self._listening.clear()
        self._selector.close()
        self._bell.close()
        self._button.close()
        if self._zap is not None:
            self._zap.close(0)
        if self._own is not None:
            self._own.term()  # all its sockets are closed: it waits for `FAREWELL_MS` at most

    def _isolate(self) -> None:
        """Use a context of our own: the place where ZeroMQ asks about peers is one for each."""
        if self._own is None:
            limit = self._context.get(zmq.MAX_SOCKETS)
            self._own = self._context = zmq.Context()
            self._own.set(zmq.MAX_SOCKETS, limit)

    def _listener(self, keys: Keys | None, apart: bool) -> Listener:
        for listener in self._listeners:
            if listener.keys == keys and listener.is_apart == apart:
                return listener
        if keys is not None:
            self._answer_zap()
        router = self._open(zmq.ROUTER)
        if keys is not None:
            curve.secure_listener(router, _server_pair(keys))
        listener = Listener(len(self._listeners), keys, router, apart)
        self._listeners.append(listener)
        self._listening[router] = listener
        self._register(router, lambda: self._drain_router(listener))
        self._register(listener.monitor, lambda: self._on_hangup(listener))
        return listener

    def _bind(self, listener: Listener, endpoint: str) -> None:
        listener.router.setsockopt(zmq.IPV6, int("[" in endpoint))
        try:
            listener.router.bind(endpoint)
        except zmq.ZMQError as error:
            where = endpoint.removeprefix("tcp://")
            raise OSError(error.errno, f"can't listen at {where}: {error.strerror}") from None

    def _answer_zap(self) -> None:
        """Be there to be asked about peers, before the first of them can come."""
        if self._zap is None:
            assert self._own is not None, "a bus without keys listens without keys"
            self._zap = open_socket(self._context, zmq.REP)
            self._zap.bind(curve.ZAP_ENDPOINT)
            self._register(self._zap, self._on_zap)

    def _on_zap(self) -> None:
        """Answer all that is asked: whoever isn't answered for isn't let in."""
        assert self._zap is not None
        with suppress(zmq.Again):
            while True:
                request = self._zap.recv_multipart(zmq.NOBLOCK)
                self._zap.send_multipart(curve.answer(request), zmq.NOBLOCK)

    # -- what an exchange calls ----------------------------------------------------------

    def dial(self, address: str) -> Route:
        """Begin to connect to "host:port" or "inproc://name".

        A host may have several addresses, and there may be several, "host,host:port": all are
        tried at once, and one that works is kept.
        """
        self._last_route += 1
        route = self._last_route
        if address.startswith("inproc://"):
            connection = self._connections[route] = Connection(route, address)
            self._connect(connection)
            self._arrivals.append(Up(route))
            return route
        hosts = hosts_of(address)
        if len(hosts) == 1 or "%" in address:
            self._connections[route] = Connection(route, address)
            self._probe(self._connections[route])
            return route
        choice = self._choices[route] = Choice(route, address)
        if hosts:
            self._try_all(choice, hosts)
        else:
            self._lookups.begin(choice.name)
        return route

    def _try_all(self, choice: Choice, hosts: list[str]) -> None:
        choice.is_looked_up = True
        port = int(choice.address.rpartition(":")[2])
        for host in hosts:
            self._last_route += 1
            connection = Connection(self._last_route, joined(host, port), choice)
            self._connections[connection.route] = connection
            choice.tried[connection.route] = host
        for route in list(choice.tried):
            self._probe(self._connections[route])

    def _take_lookups(self) -> None:
        """Go on with names that were looked up, and give up those that take too long."""
        now = time.monotonic()
        late = {choice.name for choice in self._choices.values() if now > choice.give_up_at}
        found = self._lookups.take()
        found += [Found(name, [], "the name server doesn't answer") for name in late]
        for name, hosts, error in found:
            for choice in list(self._choices.values()):
                if choice.name != name or choice.is_looked_up:
                    continue
                if hosts:
                    self._try_all(choice, hosts)
                else:
                    del self._choices[choice.route]
                    self._arrivals.append(Down(choice.route, error))

    def drop(self, route: Route) -> None:
        """Close a dialled connection. An accepted one closes when its peer does."""
        if not isinstance(route, int):
            return
        choice = self._choices.pop(route, None)
        if choice is not None:
            for tried in choice.tried:
                self.drop(tried)
        connection = self._connections.pop(route, None)
        if connection is None:
            return
        self._end_probe(connection)
        self._end_dealer(connection)

    def send(self, route: Route, frames: list[Buffer]) -> bool:
        """Send without waiting; False when the socket takes no more now."""
        if isinstance(route, bytes):
            door, peer = (0, route) if len(route) == ROUTE_BYTES else (route[-1], route[:-1])
            listeners = self._listeners
            sender = listeners[door].router if door < len(listeners) else None
            message = [peer, *frames]
        else:
            assert isinstance(route, int), "what goes to peers behind a relay goes to the relay"
            connection = self._connections.get(route)
            sender, message = connection.dealer if connection else None, frames
        if sender is None:
            return True  # it is gone: its `Down` is on the way
        try:
            sender.send_multipart(message, zmq.NOBLOCK, copy=len(frames) == 1)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            self._arrivals.append(Down(route, CLOSED))
        self._undrained[sender] = route
        return True

    def pause(self, keep: Route) -> None:
        """Take nothing in but what comes to the socket of this route, until `resume`.

        What comes otherwise waits where it is; when that is much, its senders have to wait.
        """
        self._is_paused = True
        self._kept = self._socket_of(keep)

    def resume(self) -> None:
        """Take in everything again."""
        self._is_paused = False
        self._kept = None

    # -- waiting -------------------------------------------------------------------------

    def watch(self, fd: int, callback: Callable[[], None]) -> None:
        """Call ``callback`` from `poll` whenever the descriptor is readable."""
        self._selector.register(fd, selectors.EVENT_READ, (callback, None))

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor; call it before the descriptor is closed."""
        with suppress(KeyError):
            self._selector.unregister(fd)

    def wake(self) -> None:
        """Make `poll` return soon. The only method that other threads may call."""
        self._woken = True
        if self._sleeping:
            with suppress(BlockingIOError, OSError):
                self._button.send(b"w")

    def poll(self, timeout_s: float) -> list[Arrival]:
        """Wait for something to arrive, at most so many seconds; return what has.

        Returns earlier after `wake` and after any watched descriptor's callback.
        """
        assert self._owner in (None, threading.get_ident()), "a socket belongs to one thread"
        self._owner = threading.get_ident()
        if self._arrivals or self._has_undrained():
            timeout_s = 0.0
        if self._probing or self._closed or self._choices:
            timeout_s = min(timeout_s, TRY_S)
        self._sleeping = True  # before looking at _woken: see wake()
        ready = self._selector.select(0.0 if self._woken else max(0.0, timeout_s))
        self._sleeping = False
        self._woken = False
        for key, events in ready:
            on_read, on_write = key.data
            if events & selectors.EVENT_READ:
                on_read()
            if events & selectors.EVENT_WRITE and on_write is not None:
                on_write()
        for undrained, route in list(self._undrained.items()):
            if undrained in self._undrained and self._is_heard(undrained):  # else closed, or later
                self._drain(undrained, route)
        if self._choices:
            self._take_lookups()
        self._give_up_probes()
        self._open_doors()
        if self._hung_up:
            self._hung_up = False
            self._arrivals.append(HungUp())
        arrivals, self._arrivals = self._arrivals, deque()
        return list(arrivals)

    def _on_wake(self) -> None:
        with suppress(BlockingIOError):
            self._bell.recv(4096)

    def _register(self, source: zmq.Socket[bytes], callback: Callable[[], None]) -> None:
        """Watch a socket. Its descriptor only tells of news after the first look at it."""
        self.watch(_descriptor(source), callback)
        source.getsockopt(zmq.EVENTS)

    def _unregister(self, source: zmq.Socket[bytes]) -> None:
        self.unwatch(_descriptor(source))

    def _open(self, kind: int) -> zmq.Socket[bytes]:
        opened = open_socket(self._context, kind)
        opened.setsockopt(zmq.RCVHWM, self._ahead)
        return opened

    def _socket_of(self, route: Route) -> zmq.Socket[bytes] | None:
        if isinstance(route, bytes):
            return self._listeners[0 if len(route) == ROUTE_BYTES else route[-1]].router
        connection = self._connections.get(route) if isinstance(route, int) else None
        return connection.dealer if connection else None

    def _has_undrained(self) -> bool:
        """Sending may have consumed the signal of a message that arrived: look again."""
        for source in list(self._undrained):
            if not int(source.getsockopt(zmq.EVENTS)) & READABLE:
                del self._undrained[source]
        return any(self._is_heard(source) for source in self._undrained)

    def _is_heard(self, source: zmq.Socket[bytes]) -> bool:
        return not self._is_paused or source is self._kept

    def _on_hangup(self, listener: Listener) -> None:
        with suppress(zmq.Again):
            while True:
                message = parse_monitor_message(listener.monitor.recv_multipart(zmq.NOBLOCK))
                event = message["event"]
                if event == zmq.EVENT_ACCEPTED:
                    self._on_accepted(listener, int(message["value"]))
                elif event == zmq.EVENT_ACCEPT_FAILED:
                    self._close_doors()
                elif event == zmq.EVENT_DISCONNECTED:
                    self._on_disconnected(listener, int(message["value"]))
                elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                    listener.failure = int(message["value"])

    def _on_accepted(self, listener: Listener, fd: int) -> None:
        if len(listener.peers) < ACCEPTED_MAX:
            listener.peers[fd] = _peer_of(fd)

    def _on_disconnected(self, listener: Listener, fd: int) -> None:
        self._hung_up = True
        address = listener.peers.pop(fd, UNKNOWN)
        failure, listener.failure = listener.failure, 0  # it's told of just before
        reason = curve.refusal(failure, listener.keys is not None)
        if not reason or self._is_overlooking:
            return
        if self._strangers.allows((address, reason), time.monotonic()):
            log.warning("a connection from %s was refused: %s", address, reason)

    def _close_doors(self) -> None:
        """Let nobody in for a while: ZeroMQ would try without a pause, at the cost of a core."""
        if not self._closed:
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] if CAN_LIMIT else "unknown"
            log.warning("no more connections can be accepted; limit of open files: %s", limit)
        for listener in self._listeners:
            for endpoint in listener.endpoints:
                if (listener, endpoint) not in self._closed:
                    listener.router.unbind(endpoint)
                    self._closed.append((listener, endpoint))
        self._closed_until = time.monotonic() + ACCEPT_PAUSE_S

    def _open_doors(self) -> None:
        if not self._closed or time.monotonic() < self._closed_until:
            return
        for closed in list(self._closed):
            try:
                self._bind(*closed)
            except OSError as error:  # the old one isn't gone so far, or no descriptor free
                log.debug("not again so far: %s", error)
                self._closed_until = time.monotonic() + ACCEPT_PAUSE_S
            else:
                self._closed.remove(closed)

    # -- receiving -----------------------------------------------------------------------

    def _drain_router(self, listener: Listener) -> None:
        if listener.router in self._listening:
            self._undrained[listener.router] = b""

    def _drain(self, source: zmq.Socket[bytes], route: Route) -> None:
        """Take what has arrived, up to a limit: then others get their turn first."""
        listener = self._listening.get(source)
        for _ in range(DRAIN_MAX):
            try:
                first = source.recv(zmq.NOBLOCK)
            except zmq.Again:
                self._undrained.pop(source, None)
                return
            if listener is None:
                self._arrivals.append(Arrived(route, self._rest(source, [first])))
            elif listener.keys is None:
                arrived = Arrived(first + listener.suffix, self._rest(source, []))
                if len(first) == ROUTE_BYTES:  # else it's the peer that has chosen it
                    self._arrivals.append(arrived)
            else:
                self._secured(listener, first)

    def _secured(self, listener: Listener, route: bytes) -> None:
        """Take a message of a peer whose key is known, or gets known by it."""
        source, known = listener.router, listener.keys_of
        if route not in known:
            header = source.recv(zmq.NOBLOCK, copy=False)
            if len(known) >= ACCEPTED_MAX:
                del known[next(iter(known))]
            known[route] = str(header.get("User-Id")).encode()
            frames: list[Buffer] = [header.bytes]
        else:
            frames = []
        frames = self._rest(source, frames)
        if len(route) == ROUTE_BYTES:
            self._arrivals.append(
                Arrived(route + listener.suffix, frames, known[route], listener.door)
            )

    def _rest(self, source: zmq.Socket[bytes], frames: list[Buffer]) -> list[Buffer]:
        """Receive the further frames: the header as bytes, payloads without a copy.

        Of a message with too many all that is returned is one more than may be.
        """
        while source.getsockopt(zmq.RCVMORE):
            if len(frames) > FRAMES_MAX:
                _skip(source)
                break
            if frames:
                frames.append(source.recv(zmq.NOBLOCK, copy=False).buffer)
            else:
                frames.append(source.recv(zmq.NOBLOCK))
        return frames

    # -- dialling ------------------------------------------------------------------------

    def _probe(self, connection: Connection) -> None:
        """Try a bare TCP connection first: unlike ZeroMQ it says why it fails."""
        host, _, port = connection.address.rpartition(":")
        host = host.strip("[]")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        probe = socket.socket(family, socket.SOCK_STREAM)
        probe.setblocking(False)
        try:
            error = probe.connect_ex(_numeric(host, int(port)))
        except (OSError, TypeError, ValueError, OverflowError) as wrong:  # from odd names
            probe.close()
            self._is_down(connection, f"it can't be dialled: {wrong}")
            return
        connection.probe = probe
        connection.give_up_at = time.monotonic() + PROBE_S
        if error not in (0, errno.EINPROGRESS):
            self._failed(connection, error)
            return
        self._probing.add(connection.route)
        fd = probe.fileno()
        self._selector.register(
            fd, selectors.EVENT_WRITE, (None, lambda: self._on_probe(connection))
        )

    def _on_probe(self, connection: Connection) -> None:
        assert connection.probe is not None
        error = connection.probe.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if connection.answer is not None and not error:
            self._ask(connection)
            return
        self._end_probe(connection)
        if error:
            self._failed(connection, error)
        else:
            self._connect(connection)

    def _inquire(self, connection: Connection) -> None:
        """Ask by hand why there was no agreement: ZeroMQ tells only the side that noticed it."""
        connection.failures += 1
        connection.answer = bytearray()
        self._end_dealer(connection)
        self._probe(connection)

    def _ask(self, connection: Connection) -> None:
        probe = connection.probe
        assert probe is not None
        with suppress(OSError):  # then reading tells
            probe.send(curve.greeting(self.keys is not None)[: curve.VERSION_END])
        self._selector.modify(
            probe.fileno(), selectors.EVENT_READ, (lambda: self._on_answer(connection), None)
        )

    def _on_answer(self, connection: Connection) -> None:
        assert connection.probe is not None and connection.answer is not None
        try:
            received = connection.probe.recv(curve.GREETING_BYTES)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        connection.answer += received
        if received and len(connection.answer) < curve.GREETING_BYTES:
            return
        with suppress(OSError):  # let the other side see it too: that's what it logs
            connection.probe.send(curve.greeting(self.keys is not None)[curve.VERSION_END :])
        self._end_probe(connection)
        self._explain_failure(connection, curve.mechanism(bytes(connection.answer)))

    def _explain_failure(self, connection: Connection, theirs: bytes) -> None:
        """End a connection about which there was no agreement, since the peer wants another."""
        ours = curve.CURVE if self.keys is not None else curve.NULL
        if theirs == ours == curve.CURVE and connection.failures == 1:
            connection.answer = None
            self._connect(connection)  # it may have been a mishap, and the next try isn't soon
            return
        reason = REASONS.get((ours, theirs), NO_PEER)
        self._is_down(connection, reason, denied=reason in DENIALS)

    def _end_dealer(self, connection: Connection) -> None:
        self._greeting.discard(connection.route)
        dealer, monitor = connection.dealer, connection.monitor
        connection.dealer = connection.monitor = None
        if dealer is None:
            return
        if monitor is not None:
            self._unregister(monitor)
            dealer.disable_monitor()
            monitor.close(0)
        self._unregister(dealer)
        self._undrained.pop(dealer, None)
        dealer.close(FAREWELL_MS)

    def _end_probe(self, connection: Connection) -> None:
        if connection.probe is not None:
            self._probing.discard(connection.route)
            self.unwatch(connection.probe.fileno())
            connection.probe.close()
            connection.probe = None

    def _give_up_probes(self) -> None:
        if not self._probing and not self._greeting:
            return
        now = time.monotonic()
        for route in list(self._probing):
            connection = self._connections[route]
            if now <= connection.give_up_at:
                continue
            if connection.answer is None:
                self._failed(connection, errno.ETIMEDOUT)
            else:
                self._explain_failure(connection, b"")
        for route in list(self._greeting):  # ZeroMQ waits for ever for what looks like an old peer
            if now > self._connections[route].give_up_at:
                self._is_down(self._connections[route], NO_PEER)

    def _failed(self, connection: Connection, error: int) -> None:
        host = connection.address.rpartition(":")[0].strip("[]")
        refused = error == errno.ECONNREFUSED and host.startswith(("127.", "::1"))
        self._is_down(connection, _explain(error), refused)

    def _is_down(
        self, connection: Connection, reason: str, refused: bool = False, denied: bool = False
    ) -> None:
        """A dialled connection has ended, or was never there."""
        self.drop(connection.route)
        down = Down(connection.route, reason, refused, denied)
        choice = connection.choice
        if choice is None:
            self._arrivals.append(down)
        elif choice.route in self._choices:
            choice.failures.append((choice.tried.pop(connection.route), down))
            if not choice.tried:
                del self._choices[choice.route]
                self._arrivals.append(choice.failed())

    def _is_up(self, connection: Connection) -> None:
        """A dialled connection works; others of the same choice aren't needed now."""
        choice, address = connection.choice, ""
        self._greeting.discard(connection.route)
        connection.up = True
        if choice is not None:
            address = connection.address
            connection.choice = None
            del choice.tried[connection.route]
            del self._connections[connection.route]
            self.drop(choice.route)
            connection.route = choice.route
            self._connections[choice.route] = connection
            if connection.dealer in self._undrained:
                self._undrained[connection.dealer] = choice.route
        self._arrivals.append(Up(connection.route, self.public_key, address))

    def _connect(self, connection: Connection) -> None:
        dealer = connection.dealer = self._open(zmq.DEALER)
        if self.keys is not None:
            curve.secure_dialler(dealer, _server_pair(self.keys).public, self._pair)
        route = connection.route
        self._register(dealer, lambda: self._on_dealer(connection))
        if not connection.address.startswith("inproc://"):
            connection.monitor = dealer.get_monitor_socket(EVENTS)
            self._register(connection.monitor, lambda: self._on_monitor(connection))
            self._greeting.add(route)
            connection.give_up_at = time.monotonic() + GREETING_S
        dealer.setsockopt(zmq.IPV6, int("[" in connection.address))
        dealer.connect(_endpoint(connection.address))
        self._undrained[dealer] = route
        self._on_monitor(connection)

    def _on_dealer(self, connection: Connection) -> None:
        if connection.dealer is not None and connection.route in self._connections:
            self._undrained[connection.dealer] = connection.route

    def _on_monitor(self, connection: Connection) -> None:
        while connection.monitor is not None and not connection.monitor.closed:
            try:
                message = connection.monitor.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            event = parse_monitor_message(message)["event"]
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._is_up(connection)
                continue
            if event in FAILED and not connection.up:
                self._inquire(connection)
                return
            reason = CLOSED if connection.up or event == zmq.EVENT_CLOSED else NO_PEER
            if connection.dealer is not None:
                self._drain(connection.dealer, connection.route)  # what came before the end
            self._is_down(connection, reason)
            return


def _descriptor(source: zmq.Socket[bytes]) -> int:
    return int(source.getsockopt(zmq.FD))


def _skip(source: zmq.Socket[bytes]) -> None:
    """Take in the rest of a message, and keep nothing of it."""
    while source.recv(zmq.NOBLOCK, copy=False).more:
        pass


def _peer_of(fd: int) -> str:
    """Return the address of who is at the other end of a connection of ZeroMQ."""
    try:
        connection = socket.socket(fileno=fd)
    except OSError:
        return UNKNOWN
    try:
        return str(connection.getpeername()[0])
    except (OSError, IndexError):  # it has hung up by now
        return UNKNOWN
    finally:
        connection.detach()


def _hosts(endpoint: str) -> list[str]:
    """Return what to bind to, one if the other fails: IPv6 with IPv4, or without."""
    if not endpoint.startswith("tcp://*:"):
        return [endpoint]
    port = endpoint.rpartition(":")[2]
    return [f"tcp://[::]:{port}", f"tcp://0.0.0.0:{port}"]


def _numeric(host: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """Return where to connect to; the zone of a link-local address has a number of its own."""
    if "%" not in host:
        return host, port
    bare, _, zone = host.partition("%")
    return bare, port, 0, int(zone) if zone.isdigit() else socket.if_nametoindex(zone)


def _endpoint(address: str) -> str:
    return address if "://" in address else f"tcp://{address}"


def _explain(error: int) -> str:
    if error == errno.ECONNREFUSED:
        return "connection refused: nothing listens there"
    if error in (errno.ETIMEDOUT, errno.EHOSTUNREACH):
        return "no answer: the host is down or a firewall is in the way"
    return os.strerror(error).lower()
