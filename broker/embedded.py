"""A broker in the client's own process, so that a single client needs no daemon.

One for each process, shared by all its clusters. It has no thread of its own: the client's
session waits on it, and the broker works meanwhile. The two speak the protocol all the
same, frames and all, over a connection in memory; that saves two changes of thread per job.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from dispy.protocol import guard, listening
from dispy.protocol import secret as secrets
from dispy.protocol.arrivals import Arrival, Arrived, Down, Route, Up
from dispy.protocol.keys import Keys
from dispy.protocol.listening import ALL, HERE
from dispy.protocol.messages import Buffer
from dispy.protocol.protection import NOTHING, Protection
from dispy.protocol.transport import Bus

from .daemon import BrokerDaemon

OUTSIDE = 1  # the route to the broker, as the client names it
INSIDE = b"inside"  # the route to the client, as the broker names it
INSIDE_KEY = b"in memory"  # stands for the client's public key, which others can't have
GONE = "the other side closed the connection"
ANSWER_S = 1.0  # how long to wait for nodes to say that they are there
JOIN_S = 3.0  # ... and then for one of them to register
log = logging.getLogger("dispy.broker")


class Search(NamedTuple):
    """How to look for nodes in the network."""

    ports: tuple[int, ...]  # UDP ports of nodes
    interval_s: float = 0.0  # how often; 0: a few times, then no more
    multicast: bool = False  # not by broadcast


class Site(NamedTuple):
    """What makes brokers of one process differ: who may come, and where they listen."""

    protection: Protection = NOTHING
    hosts: tuple[str, ...] = (HERE,)  # as by `listening.hosts_to_listen`
    ext_hosts: tuple[str, ...] = ()  # by which nodes reach this machine, if they differ


class PrivateDoor(NamedTuple):
    """Where the private node of this process dials in, and the secret for it; "": none."""

    port: int  # of the loopback address
    secret: str

    def __repr__(self) -> str:
        return f"<PrivateDoor {self.port}>"


class BusWithInside(Bus):
    """A broker's bus that has one connection more: the one to the client in memory."""

    def __init__(self, keys: Keys | None = None) -> None:
        super().__init__(keys)
        self.to_broker: deque[Arrival] = deque()
        self.to_client: deque[Arrival] = deque()
        self.has_looked = True  # at the sockets, the last time

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
        """Wait for sockets, unless the client has said something: then look at them in turns."""
        self.has_looked = not (self.to_broker and self.has_looked)
        arrivals: list[Arrival] = []
        if self.has_looked:
            arrivals = super().poll(0.0 if self.to_broker else timeout_s)
        arrivals += self.to_broker
        self.to_broker.clear()
        return arrivals


NOWHERE_ELSE = Site()  # nobody but this machine can reach it


class Broker:
    """The broker of this process, as its client sees it: a transport, and a thing to wait on.

    All methods but `wake`, `seek` and `await_nodes` are for the one thread that drives it.
    """

    def __init__(self, software: str, port: int, site: Site = NOWHERE_ELSE) -> None:
        """Listen at ``port``, or at another one if that is taken. Raises `OSError`."""
        self.keys = site.protection.keys
        self._bus = BusWithInside(self.keys)
        try:
            self.doors = self._listen(site.hosts, port)
            self.port = int(self.doors[0].rpartition(":")[2])  # where nodes may dial in
            self.private, private_keys = self._open_private_door(site)
        except BaseException:
            self._bus.close()
            raise
        addresses = listening.addresses_of_doors(self.doors, site.ext_hosts)
        doors = guard.doors((self.keys, guard.ROLES), (private_keys, guard.NODES))
        self._daemon = BrokerDaemon(
            self._bus,
            software,
            _title(),
            doors=doors,
            addresses=addresses,
            reaches_out=site.protection.reaches_out,
        )
        self._daemon.exchange.ack_late()  # nodes keep results until the client has them
        self.token = self._daemon.token
        self._daemon.allow_discovery(self.keys, self.doors, port=port)
        self._searches: deque[Search] = deque()
        self._news = threading.Condition()
        self._waiting = 0  # threads, for news of nodes
        self._answers = 0  # of nodes that were found
        self._nodes = 0  # that are registered
        self.address = f"inside:{os.getpid()}:{self.port}"

    def _listen(self, hosts: Sequence[str], port: int) -> list[str]:
        try:
            return listening.listen(
                self._bus.listen, (listening.joined(host, port) for host in hosts)
            )
        except OSError:
            log.debug("port %d is taken; nodes dial in at another one", port)
            return listening.listen(self._bus.listen, (listening.joined(host, 0) for host in hosts))

    def _open_private_door(self, site: Site) -> tuple[PrivateDoor, Keys | None]:
        """Let the private node in, which needn't know the secret of all others."""
        if self.keys is None and (HERE in site.hosts or ALL in site.hosts):
            return PrivateDoor(self.port, ""), None
        text = "" if self.keys is None else secrets.new()
        keys = secrets.read(text).keys if text else None
        door = self._bus.listen(f"{HERE}:0", keys)
        return PrivateDoor(int(door.rpartition(":")[2]), text), keys

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
        bus, daemon = self._bus, self._daemon
        if daemon.exchange.is_sent(INSIDE):
            daemon.exchange.confirm(time.monotonic())
        is_over = False
        if bus.to_broker:
            daemon.step(0.0)
            is_over = bus.has_looked  # and so may have been told to `wake`
        if not is_over and not bus.to_client:
            daemon.step(timeout_s)
        arrivals = list(bus.to_client)
        bus.to_client.clear()
        while self._searches:
            self._daemon.seek(*self._searches.popleft())
        if self._waiting:
            self._tell_news()
        return arrivals

    def _tell_news(self) -> None:
        with self._news:
            self._answers = self._daemon.answers
            self._nodes = len(self._daemon.scheduler.nodes)
            self._news.notify_all()

    def seek(self, search: Search) -> None:
        """Begin to look for nodes in the network, from any thread; it needs a secret."""
        if self.keys is not None:
            self._searches.append(search)
            self._bus.wake()

    def await_nodes(self) -> bool:
        """Wait a moment for the first node to register; return whether there is one.

        For other threads than the one that drives the broker. Waits longer when nodes have
        answered, though any of them may turn out to be out of reach.
        """
        with self._news:
            before = self._answers
            self._waiting += 1
            try:
                self._bus.wake()
                self._news.wait_for(lambda: self._nodes or self._answers > before, ANSWER_S)
                if self._answers > before:
                    self._news.wait_for(lambda: self._nodes, JOIN_S)
                return self._nodes > 0
            finally:
                self._waiting -= 1

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
