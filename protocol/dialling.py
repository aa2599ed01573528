"""What a process dials: names are looked up, hosts tried, connections greeted by ZeroMQ.

A bare TCP connection goes first, since it can tell why it fails. A dialled socket is one
connection: when that breaks, the socket is closed and never used again.
"""

from __future__ import annotations

import errno
import os
import selectors
import socket
import time
from collections.abc import Callable
from contextlib import suppress

import zmq

from . import curve
from .arrivals import Down, Route, Up
from .keys import Keys
from .listening import joined
from .lookup import Found, Lookups, hosts_of
from .sockets import FAREWELL_MS, Sockets, endpoint_of, read_monitor

LOOKUP_S = 5.0  # how long a name may take to be looked up
PROBE_S = 3.0  # how long a TCP connection may take
GREETING_S = 3.5  # ... and the handshake after it
NO_PEER = "what listens there doesn't answer: it hangs, or it isn't a dispy peer"
SECRETS_DIFFER = "the secrets differ: it has another one than this side; use the same on both"
NO_SECRET_THERE = "this side has a secret, and that one has none: use the same on both"
NO_SECRET_HERE = "it asks for a secret, and this side has none: use the same on both"
CLOSED = "the connection was closed"

# What it means when connections that want to be so (ours and theirs) end before they begin.
REASONS = {
    (curve.CURVE, curve.CURVE): SECRETS_DIFFER,
    (curve.CURVE, curve.NULL): NO_SECRET_THERE,
    (curve.NULL, curve.CURVE): NO_SECRET_HERE,
    (curve.NULL, curve.NULL): CLOSED,
}
DENIALS = {SECRETS_DIFFER, NO_SECRET_THERE, NO_SECRET_HERE}
EVENTS = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED  # who listened a moment ago doesn't any more, or has hung up at once
)
FAILED = {
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
    zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
    zmq.EVENT_HANDSHAKE_FAILED_AUTH,
}


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


class Dialler:
    """All dialled connections of a bus. ``drain`` takes what has come in at a socket."""

    def __init__(
        self,
        sockets: Sockets,
        keys: Keys | None,
        drain: Callable[[zmq.Socket[bytes], Route], None],
    ) -> None:
        self.keys = keys
        self.connections: dict[int, Connection] = {}
        self._sockets = sockets
        self._drain = drain
        self._pair = curve.random_pair() if keys is not None else curve.KeyPair(b"", b"")
        self.public_key = self._pair.public
        self._choices: dict[int, Choice] = {}
        self._lookups = Lookups(sockets.wake)
        self._last_route = 0
        self._probing: set[int] = set()
        self._greeting: set[int] = set()  # connected, but ZeroMQ hasn't understood the other side

    @property
    def is_trying(self) -> bool:
        """Whether something goes on that tells nobody when it takes too long."""
        return bool(self._probing or self._choices)

    def tick(self) -> None:
        """Go on with names that were looked up; give up what takes too long."""
        if self._choices:
            self._take_lookups()
        if self._probing or self._greeting:
            self._give_up_probes()

    def close(self) -> None:
        """Drop every connection."""
        for route in (*self._choices, *self.connections):
            self.drop(route)

    def dial(self, address: str) -> Route:
        """Begin to connect; see `Bus.dial`."""
        self._last_route += 1
        route = self._last_route
        if address.startswith("inproc://"):
            connection = self.connections[route] = Connection(route, address)
            self._connect(connection)
            self._sockets.arrivals.append(Up(route))
            return route
        hosts = hosts_of(address)
        if len(hosts) == 1 or "%" in address:
            self.connections[route] = Connection(route, address)
            self._probe(self.connections[route])
            return route
        choice = self._choices[route] = Choice(route, address)
        if hosts:
            self._try_all(choice, hosts)
        else:
            self._lookups.begin(choice.name)
        return route

    def drop(self, route: Route) -> None:
        """Close a dialled connection. An accepted one closes when its peer does."""
        if not isinstance(route, int):
            return
        choice = self._choices.pop(route, None)
        if choice is not None:
            for tried in choice.tried:
                self.drop(tried)
        connection = self.connections.pop(route, None)
        if connection is None:
            return
        self._end_probe(connection)
        self._end_dealer(connection)

    def _try_all(self, choice: Choice, hosts: list[str]) -> None:
        choice.is_looked_up = True
        port = int(choice.address.rpartition(":")[2])
        for host in hosts:
            self._last_route += 1
            connection = Connection(self._last_route, joined(host, port), choice)
            self.connections[connection.route] = connection
            choice.tried[connection.route] = host
        for route in list(choice.tried):
            self._probe(self.connections[route])

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
                    self._sockets.arrivals.append(Down(choice.route, error))

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
        self._sockets.selector.register(
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
        self._sockets.selector.modify(
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
            self._sockets.unregister(monitor)
            dealer.disable_monitor()
            monitor.close(0)
        self._sockets.unregister(dealer)
        self._sockets.undrained.pop(dealer, None)
        dealer.close(FAREWELL_MS)

    def _end_probe(self, connection: Connection) -> None:
        if connection.probe is not None:
            self._probing.discard(connection.route)
            self._sockets.unwatch(connection.probe.fileno())
            connection.probe.close()
            connection.probe = None

    def _give_up_probes(self) -> None:
        now = time.monotonic()
        for route in list(self._probing):
            connection = self.connections[route]
            if now <= connection.give_up_at:
                continue
            if connection.answer is None:
                self._failed(connection, errno.ETIMEDOUT)
            else:
                self._explain_failure(connection, b"")
        for route in list(self._greeting):  # ZeroMQ waits for ever for what looks like an old peer
            if now > self.connections[route].give_up_at:
                self._is_down(self.connections[route], NO_PEER)

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
            self._sockets.arrivals.append(down)
        elif choice.route in self._choices:
            choice.failures.append((choice.tried.pop(connection.route), down))
            if not choice.tried:
                del self._choices[choice.route]
                self._sockets.arrivals.append(choice.failed())

    def _is_up(self, connection: Connection) -> None:
        """A dialled connection works; others of the same choice aren't needed now."""
        choice, address = connection.choice, ""
        self._greeting.discard(connection.route)
        connection.up = True
        if choice is not None:
            address = connection.address
            connection.choice = None
            del choice.tried[connection.route]
            del self.connections[connection.route]
            self.drop(choice.route)
            connection.route = choice.route
            self.connections[choice.route] = connection
            if connection.dealer in self._sockets.undrained:
                self._sockets.undrained[connection.dealer] = choice.route
        self._sockets.arrivals.append(Up(connection.route, self.public_key, address))

    def _connect(self, connection: Connection) -> None:
        dealer = connection.dealer = self._sockets.open(zmq.DEALER)
        if self.keys is not None:
            curve.secure_dialler(dealer, curve.server_pair(self.keys).public, self._pair)
        route = connection.route
        self._sockets.register(dealer, lambda: self._on_dealer(connection))
        if not connection.address.startswith("inproc://"):
            connection.monitor = dealer.get_monitor_socket(EVENTS)
            self._sockets.register(connection.monitor, lambda: self._on_monitor(connection))
            self._greeting.add(route)
            connection.give_up_at = time.monotonic() + GREETING_S
        dealer.setsockopt(zmq.IPV6, int("[" in connection.address))
        dealer.connect(endpoint_of(connection.address))
        self._sockets.undrained[dealer] = route
        self._on_monitor(connection)

    def _on_dealer(self, connection: Connection) -> None:
        if connection.dealer is not None and connection.route in self.connections:
            self._sockets.undrained[connection.dealer] = connection.route

    def _on_monitor(self, connection: Connection) -> None:
        while connection.monitor is not None and not connection.monitor.closed:
            try:
                event, _ = read_monitor(connection.monitor)
            except zmq.Again:
                return
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


def _numeric(host: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    """Return where to connect to; the zone of a link-local address has a number of its own."""
    if "%" not in host:
        return host, port
    bare, _, zone = host.partition("%")
    return bare, port, 0, int(zone) if zone.isdigit() else socket.if_nametoindex(zone)


def _explain(error: int) -> str:
    if error == errno.ECONNREFUSED:
        return "connection refused: nothing listens there"
    if error in (errno.ETIMEDOUT, errno.EHOSTUNREACH):
        return "no answer: the host is down or a firewall is in the way"
    return os.strerror(error).lower()
