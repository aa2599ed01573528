"""A bus: everything that goes in and out of one process, and the loop that waits for it.

It has what listens (`listeners`), what is dialled (`dialling`) and other descriptors to watch;
one thread owns it. Here messages are sent and taken in.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable
from types import EllipsisType

import zmq

from .arrivals import Arrival, Arrived, Down, HungUp, Route
from .dialling import CLOSED, Dialler
from .keys import Keys
from .listeners import ACCEPTED_MAX, Listener, Listeners
from .messages import Buffer
from .sockets import HIGH_WATER, TRY_S, Sockets
from .wire import FRAMES_MAX

DRAIN_MAX = 200  # messages taken from one socket before the core gets its turn
ROUTE_BYTES = 5  # as ZeroMQ makes them, with a zero first; peers may choose others, ours don't
# Plain numbers: operators of the flags themselves are slow.
READABLE = int(zmq.POLLIN)
NO_WAIT = int(zmq.NOBLOCK)
MORE = int(zmq.SNDMORE | zmq.NOBLOCK)


class Bus:
    """Implements `arrivals.Transport` with sockets, and waits for all of them at once."""

    def __init__(self, keys: Keys | None = None, ahead: int = HIGH_WATER) -> None:
        """With ``keys``, all that is dialled and listened at is encrypted with them.

        ``ahead``: so many messages of a connection are read before somebody takes them.
        """
        self.keys = keys
        self._sockets = Sockets(ahead)
        if keys is not None:
            self._sockets.isolate()
        self._listeners = Listeners(self._sockets, keys)
        self._dialler = Dialler(self._sockets, keys, self._drain)
        self.public_key = self._dialler.public_key  # of all that is dialled; or empty
        self._arrivals = self._sockets.arrivals
        self._undrained = self._sockets.undrained  # may have messages without a signal
        self._is_paused = False
        self._kept: zmq.Socket[bytes] | None = None  # ... but for this one
        self._owner: int | None = None

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
        return self._listeners.listen(address, keys, apart)

    def overlook(self) -> None:
        """Log nothing of those who have come and gone so far: they were sent by this process."""
        self._listeners.overlook()

    def close(self) -> None:
        """Close every socket at once; what was not sent is lost."""
        self._dialler.close()
        self._listeners.close()
        self._sockets.close()

    # -- what an exchange calls ----------------------------------------------------------

    def dial(self, address: str) -> Route:
        """Begin to connect to "host:port" or "inproc://name".

        A host may have several addresses, and there may be several, "host,host:port": all are
        tried at once, and one that works is kept.
        """
        return self._dialler.dial(address)

    def drop(self, route: Route) -> None:
        """Close a dialled connection. An accepted one closes when its peer does."""
        self._dialler.drop(route)

    def send(self, route: Route, frames: list[Buffer]) -> bool:
        """Send without waiting; False when the socket takes no more now."""
        if isinstance(route, bytes):
            door, peer = (0, route) if len(route) == ROUTE_BYTES else (route[-1], route[:-1])
            listeners = self._listeners.all
            sender = listeners[door].router if door < len(listeners) else None
            message = [peer, *frames]
        else:
            assert isinstance(route, int), "what goes to peers behind a relay goes to the relay"
            connection = self._dialler.connections.get(route)
            sender, message = connection.dealer if connection else None, frames
        if sender is None:
            return True  # it is gone: its `Down` is on the way
        is_short = len(frames) == 1
        try:
            for frame in message[:-1]:
                sender.send(frame, MORE, copy=is_short)
            sender.send(message[-1], NO_WAIT, copy=is_short)
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
        self._sockets.watch(fd, callback)

    def unwatch(self, fd: int) -> None:
        """Forget a descriptor; call it before the descriptor is closed."""
        self._sockets.unwatch(fd)

    def wake(self) -> None:
        """Make `poll` return soon. The only method that other threads may call."""
        self._sockets.wake()

    @property
    def was_stirred(self) -> bool:
        """Whether the last `poll` has seen any more than a `wake` and the end of its time."""
        return self._sockets.was_stirred

    def poll(self, timeout_s: float) -> list[Arrival]:
        """Wait for something to arrive, at most so many seconds; return what has.

        Returns earlier after `wake` and after any watched descriptor's callback.
        """
        thread = threading.get_ident()
        assert self._owner in (None, thread), "a socket belongs to one thread"
        self._owner = thread
        if self._arrivals or (self._undrained and self._has_undrained()):
            timeout_s = 0.0
        if self._dialler.is_trying or self._listeners.closed:
            timeout_s = min(timeout_s, TRY_S)
        self._sockets.wait(timeout_s)
        for undrained, route in list(self._undrained.items()):
            if undrained in self._undrained and self._is_heard(undrained):  # else closed, or later
                self._drain(undrained, route)
        self._dialler.tick()
        if self._listeners.closed:
            self._listeners.reopen()
        if self._listeners.have_hung_up:
            self._listeners.have_hung_up = False
            self._arrivals.append(HungUp())
        arrivals = list(self._arrivals)
        self._arrivals.clear()
        return arrivals

    def _socket_of(self, route: Route) -> zmq.Socket[bytes] | None:
        if isinstance(route, bytes):
            return self._listeners.all[0 if len(route) == ROUTE_BYTES else route[-1]].router
        connection = self._dialler.connections.get(route) if isinstance(route, int) else None
        return connection.dealer if connection else None

    def _has_undrained(self) -> bool:
        """Sending may have consumed the signal of a message that arrived: look again."""
        for source in list(self._undrained):
            if not int(source.getsockopt(zmq.EVENTS)) & READABLE:
                del self._undrained[source]
        return any(self._is_heard(source) for source in self._undrained)

    def _is_heard(self, source: zmq.Socket[bytes]) -> bool:
        return not self._is_paused or source is self._kept

    # -- receiving -----------------------------------------------------------------------

    def _drain(self, source: zmq.Socket[bytes], route: Route) -> None:
        """Take what has arrived, up to a limit: then others get their turn first."""
        listener = self._listeners.by_socket.get(source)
        for _ in range(DRAIN_MAX):
            if not int(source.getsockopt(zmq.EVENTS)) & READABLE:  # cheaper than to be told `Again`
                self._undrained.pop(source, None)
                return
            frame = source.recv(NO_WAIT, copy=False)
            if listener is None:
                self._arrivals.append(Arrived(route, _message(source, frame)))
            elif frame.more:
                self._take(listener, frame.bytes)

    def _take(self, listener: Listener, route: bytes) -> None:
        """Take a message of a peer that dialled in; with keys it has one, by which it's known."""
        source, known = listener.router, listener.keys_of
        header = source.recv(NO_WAIT, copy=False)
        if listener.keys is not None and route not in known:
            if len(known) >= ACCEPTED_MAX:
                del known[next(iter(known))]
            known[route] = str(header.get("User-Id")).encode()
        key = known.get(route, b"")
        frames = _message(source, header)
        if len(route) != ROUTE_BYTES or route[0] != 0:
            return  # the peer has chosen it
        route += listener.suffix
        if listener.keys is None:
            self._arrivals.append(Arrived(route, frames))
        else:
            self._arrivals.append(Arrived(route, frames, key, listener.door))


def _message(source: zmq.Socket[bytes], header: zmq.Frame) -> list[Buffer]:
    """Receive the further frames of a message: payloads without a copy, the header as bytes.

    Of a message with too many all that is returned is one more than may be.
    """
    frames: list[Buffer] = [header.bytes]
    frame = header
    while frame.more:
        if len(frames) > FRAMES_MAX:
            _skip(source)
            break
        frame = source.recv(NO_WAIT, copy=False)
        frames.append(frame.buffer)
    return frames


def _skip(source: zmq.Socket[bytes]) -> None:
    """Take in the rest of a message, and keep nothing of it."""
    while source.recv(NO_WAIT, copy=False).more:
        pass
