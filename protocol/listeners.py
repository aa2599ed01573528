"""Where a process listens: who comes in there, who is sent away and why.

There is a ROUTER for each secret. ZeroMQ tells of strangers only by the monitor of a socket, and
asks about those who have the secret at one place of its context.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import time
from contextlib import suppress
from types import EllipsisType

import zmq

from . import curve
from .keys import Keys
from .logs import Seldom
from .sockets import (
    FAREWELL_MS,
    TRY_S,
    Sockets,
    endpoint_of,
    limit_of_files,
    open_socket,
    read_monitor,
)

ACCEPT_PAUSE_S = 1.0  # when there are no descriptors left, nobody is let in for so long
MAPPED = "::ffff:"  # before IPv4 addresses, where both kinds are listened at
UNKNOWN = "an address that has gone already"
TAKEN = (errno.EADDRINUSE, errno.EACCES)  # not to be tried with IPv4 only
OVERLOOK_S = 0.5  # to see the end of connections of our own; real peers may be among them
ACCEPTED_MAX = 10_000  # addresses and keys of accepted connections that are kept

log = logging.getLogger("dispy.transport")

DOOR_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_ACCEPT_FAILED
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_DISCONNECTED
)


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


class Listeners:
    """All of a bus."""

    def __init__(self, sockets: Sockets, keys: Keys | None) -> None:
        self.keys = keys
        self.all: list[Listener] = []
        self.by_socket: dict[zmq.Socket[bytes], Listener] = {}
        self.have_hung_up = False  # some of those who came, since this was last set
        self._sockets = sockets
        self._zap: zmq.Socket[bytes] | None = None
        # Doors that are closed for a while, since accepting fails; to be opened again.
        self.closed: list[tuple[Listener, str]] = []
        self._closed_until = 0.0
        self._strangers = Seldom()
        self._is_overlooking = False
        self._process = os.getpid()

    def close(self) -> None:
        """Close every door."""
        is_forked = self._process != os.getpid()  # ZeroMQ's threads aren't here then
        for listener in self.all:
            self._sockets.unregister(listener.monitor)
            # When it is full, ZeroMQ's thread waits in it, and `disable_monitor` for that thread.
            if not is_forked:
                self._on_hangup(listener)
            listener.router.disable_monitor()
            listener.monitor.close(0)
            self._sockets.unregister(listener.router)
            listener.router.close(FAREWELL_MS)
        self.all.clear()
        self.by_socket.clear()
        if self._zap is not None:
            self._zap.close(0)

    def listen(
        self, address: str, keys: Keys | EllipsisType | None = ..., apart: bool = False
    ) -> str:
        """Listen there; see `Bus.listen`."""
        listener = self._listener(self.keys if keys is ... else keys, apart)
        endpoint = endpoint_of(address)
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
        for listener in self.all:
            self._on_hangup(listener)
            while listener.peers and time.monotonic() < give_up_at:
                listener.monitor.poll(int(TRY_S * 1000))
                self._on_hangup(listener)
        self._is_overlooking = False

    def _listener(self, keys: Keys | None, apart: bool) -> Listener:
        for listener in self.all:
            if listener.keys == keys and listener.is_apart == apart:
                return listener
        if keys is not None:
            self._answer_zap()
        router = self._sockets.open(zmq.ROUTER)
        if keys is not None:
            curve.secure_listener(router, curve.server_pair(keys))
        listener = Listener(len(self.all), keys, router, apart)
        self.all.append(listener)
        self.by_socket[router] = listener
        self._sockets.register(router, lambda: self._drain_router(listener))
        self._sockets.register(listener.monitor, lambda: self._on_hangup(listener))
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
            assert self._sockets.is_isolated, "a bus without keys listens without keys"
            self._zap = open_socket(self._sockets.context, zmq.REP)
            self._zap.bind(curve.ZAP_ENDPOINT)
            self._sockets.register(self._zap, self._on_zap)

    def _on_zap(self) -> None:
        """Answer all that is asked: whoever isn't answered for isn't let in."""
        assert self._zap is not None
        with suppress(zmq.Again):
            while True:
                request = self._zap.recv_multipart(zmq.NOBLOCK)
                self._zap.send_multipart(curve.answer(request), zmq.NOBLOCK)

    def _drain_router(self, listener: Listener) -> None:
        if listener.router in self.by_socket:
            self._sockets.undrained[listener.router] = b""

    def _on_hangup(self, listener: Listener) -> None:
        with suppress(zmq.Again):
            while True:
                event, value = read_monitor(listener.monitor)
                if event == zmq.EVENT_ACCEPTED:
                    self._on_accepted(listener, value)
                elif event == zmq.EVENT_ACCEPT_FAILED:
                    self._close_doors()
                elif event == zmq.EVENT_DISCONNECTED:
                    self._on_disconnected(listener, value)
                elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                    listener.failure = value

    def _on_accepted(self, listener: Listener, fd: int) -> None:
        if len(listener.peers) < ACCEPTED_MAX:
            listener.peers[fd] = _peer_of(fd)

    def _on_disconnected(self, listener: Listener, fd: int) -> None:
        self.have_hung_up = True
        address = listener.peers.pop(fd, UNKNOWN)
        failure, listener.failure = listener.failure, 0  # it's told of just before
        reason = curve.refusal(failure, listener.keys is not None)
        if not reason or self._is_overlooking:
            return
        if self._strangers.allows((address, reason), time.monotonic()):
            log.warning("a connection from %s was refused: %s", address, reason)

    def _close_doors(self) -> None:
        """Let nobody in for a while: ZeroMQ would try without a pause, at the cost of a core."""
        if not self.closed:
            log.warning(
                "no more connections can be accepted; limit of open files: %s", limit_of_files()
            )
        for listener in self.all:
            for endpoint in listener.endpoints:
                if (listener, endpoint) not in self.closed:
                    listener.router.unbind(endpoint)
                    self.closed.append((listener, endpoint))
        self._closed_until = time.monotonic() + ACCEPT_PAUSE_S

    def reopen(self) -> None:
        """Let peers in again, if it is time."""
        if time.monotonic() < self._closed_until:
            return
        for closed in list(self.closed):
            try:
                self._bind(*closed)
            except OSError as error:  # the old one isn't gone so far, or no descriptor free
                log.debug("not again so far: %s", error)
                self._closed_until = time.monotonic() + ACCEPT_PAUSE_S
            else:
                self.closed.remove(closed)


def _peer_of(fd: int) -> str:
    """Return the address of who is at the other end of a connection of ZeroMQ."""
    try:
        connection = socket.socket(fileno=fd)
    except OSError:
        return UNKNOWN
    try:
        return str(connection.getpeername()[0]).removeprefix(MAPPED)
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
