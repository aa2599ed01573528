"""A broker in the client's own process, so that a single client needs no daemon.

One for each process, shared by all its clusters. It has no thread of its own: the client's
session waits on it, and each wait is a step of the broker. The two speak the protocol all the
same, frames and all, over a connection in memory; that saves two changes of thread per job.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
import sys
import time
from collections import deque
from contextlib import suppress

from dispy.protocol.exchange import Arrival, Arrived, Down, Route, Up
from dispy.protocol.keys import Keys
from dispy.protocol.messages import Buffer
from dispy.protocol.transport import Bus

from .daemon import BrokerDaemon

OUTSIDE = 1  # the route to the broker, as the client names it
INSIDE = b"inside"  # the route to the client, as the broker names it
INSIDE_KEY = b"in memory"  # stands for the client's public key, which others can't have
GONE = "the other side closed the connection"
log = logging.getLogger("dispy.broker")


class BusWithInside(Bus):
    """A broker's bus that has one connection more: the one to the client in memory."""

    def __init__(self, keys: Keys | None = None) -> None:
        super().__init__(keys)
        self.to_broker: deque[Arrival] = deque()
        self.to_client: deque[Arrival] = deque()

    def send(self, route: Route, frames: list[Buffer]) -> bool:
        """Send to a socket or to the client; the latter always has room."""
        if route != INSIDE:
            return super().send(route, frames)
        self.to_client.append(Arrived(OUTSIDE, frames))
        return True

    def drop(self, route: Route) -> None:
        """Close a connection."""
        if route != INSIDE:
            super().drop(route)
        else:
            self.to_client.append(Down(OUTSIDE, GONE))

    def poll(self, timeout_s: float) -> list[Arrival]:
        """Wait for sockets, unless the client has said something."""
        arrivals = super().poll(0.0 if self.to_broker else timeout_s)
        arrivals += self.to_broker
        self.to_broker.clear()
        return arrivals


class Broker:
    """The broker of this process, as its client sees it: a transport, and a thing to wait on.

    All methods but `wake` are for the one thread that drives it.
    """

    def __init__(self, software: str, port: int, keys: Keys | None = None) -> None:
        self.keys = keys
        self._bus = BusWithInside(keys)
        self._daemon = BrokerDaemon(self._bus, software, _title())
        self.token = self._daemon.token
        self._daemon.exchange.acks_late = True  # nodes keep results until the client has them
        try:
            door = self._bus.listen(f"127.0.0.1:{port}")
        except OSError:
            log.debug("port %d is taken; nodes dial in at another one", port)
            door = self._bus.listen("127.0.0.1:0")
        self.port = int(door.rpartition(":")[2])  # where nodes may dial in
        self.address = f"inside:{os.getpid()}:{self.port}"

    def dial(self, address: str) -> Route:
        """Connect: that always works, and at once."""
        self._bus.to_client.append(Up(OUTSIDE, INSIDE_KEY))
        return OUTSIDE

    def drop(self, route: Route) -> None:
        """Close the connection."""
        self._bus.to_broker.append(Down(INSIDE, GONE))

    def send(self, route: Route, frames: list[Buffer]) -> bool:
        """Hand a message to the broker, which sees it in the next `poll`."""
        self._bus.to_broker.append(Arrived(INSIDE, frames, INSIDE_KEY))
        return True

    def poll(self, timeout_s: float) -> list[Arrival]:
        """Let the broker wait and work; return what it says to the client.

        What it said last time has been dealt with by now, and is in the recover file.
        """
        if self._daemon.exchange.is_sent(INSIDE):
            self._daemon.exchange.confirm(time.monotonic())
        self._daemon.step(0.0 if self._bus.to_client else timeout_s)
        arrivals = list(self._bus.to_client)
        self._bus.to_client.clear()
        return arrivals

    def wake(self) -> None:
        """Make `poll` return soon, from any thread."""
        self._bus.wake()

    def close(self) -> None:
        """End the broker; nodes are told, and what runs there for it is ended."""
        self._daemon.close()


def _title() -> str:
    """Say whose broker this is, to those who find their node busy with it."""
    script, user = os.path.basename(sys.argv[0]), ""
    with suppress(KeyError, OSError, ImportError):  # the user may have no name
        user = f"{getpass.getuser()}'s "
    return f"{user}{script or 'program'} (pid {os.getpid()} at {socket.gethostname()})"
