"""Floods that meet a daemon while it is busy with something else."""

from __future__ import annotations

import subprocess
import sys
import time
from contextlib import closing
from typing import Any

from dispy.protocol.arrivals import Arrived, HungUp, Up
from dispy.protocol.exchange import Exchange
from dispy.protocol.messages import Identity
from dispy.protocol.transport import Bus
from dispy.protocol.wire import FRAMES_MAX
from dispy.relay.core import Relay
from tests.memoryshelf import MemoryShelf

from .test_lying_relays import BROKER, DOOR, LIAR, TRUNK, Wire, encoded, hello

PATIENCE_S = 20.0
NODE = Identity("node", "n", "worker", "0", "3", "Linux")

# Connections come and go, and nobody takes in what ZeroMQ tells of them.
FLOODED = """
import socket, time
from dispy.protocol.keys import Keys
from dispy.protocol.transport import Bus

bus = Bus(Keys(b"of this test"))
host, _, port = bus.listen("127.0.0.1:0").rpartition(":")
for _ in range(15):
    callers = [socket.socket() for _ in range(200)]
    for caller in callers:
        caller.setblocking(False)
        caller.connect_ex((host, int(port)))
    time.sleep(0.05)  # as a busy daemon does
    for caller in callers:
        caller.close()
bus.close()
"""


def test_a_daemon_that_was_busy_during_a_flood_of_connections_ends_when_it_is_told_to() -> None:
    ended = subprocess.run([sys.executable, "-c", FLOODED], timeout=30, check=False)
    assert ended.returncode == 0


def test_of_a_message_of_very_many_frames_little_is_kept_and_the_next_one_is_heard() -> None:
    with closing(Bus()) as listening, closing(Bus()) as dialling:
        route = dialling.dial(listening.listen("127.0.0.1:0"))
        arrivals = _until(dialling, listening, Up, 1)
        assert arrivals[0].route == route
        dialling.send(route, [b"x"] * (3 * FRAMES_MAX))
        dialling.send(route, [b"next"])
        long, after = _until(listening, dialling, Arrived, 2)
        assert len(long.frames) == FRAMES_MAX + 1
        assert list(after.frames) == [b"next"]


def _until(bus: Bus, other: Bus, kind: type[Any], count: int) -> list[Any]:
    """Return so many arrivals of a kind."""
    found: list[Any] = []
    give_up_at = time.monotonic() + PATIENCE_S
    while len(found) < count:
        assert time.monotonic() < give_up_at, found
        other.poll(0.0)
        found += [each for each in bus.poll(0.05) if isinstance(each, kind)]
    return found


def test_connections_that_come_and_go_make_a_broker_say_little_to_the_others() -> None:
    wire = Wire()
    broker = Exchange(BROKER, wire, lambda: "session")
    broker.receive(Arrived(DOOR, encoded(hello(NODE))), 0.0)
    for step in range(1000):
        broker.receive(HungUp(), step / 1000)
        broker.tick(step / 1000)
        broker.flush(step / 1000)
    assert 2 <= len(wire.sent) < 12  # in a second


def test_nor_a_relay() -> None:
    wire = Wire()
    relay = Relay(LIAR, wire, lambda: "session", MemoryShelf)
    relay.receive(Arrived(TRUNK, encoded(hello(BROKER))), 0.0)
    relay.receive(Arrived(DOOR, encoded(hello(NODE))), 0.0)
    for step in range(1000):
        relay.receive(HungUp(), step / 1000)
        relay.tick(step / 1000)
        relay.flush(step / 1000)
    assert 2 <= len([route for route, _ in wire.sent if route == DOOR]) < 12
