"""A real node and brokers that come and go. The test is the broker, over real sessions.

A broker with a journal that was killed is "started anew" as another one with the same instance at
the same port: it has its old name, and knows nothing of its sessions.
"""

from __future__ import annotations

import pickle
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
import pytest

from dispy.protocol.events import DialFailed, Joined, Left, Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.guard import Guard
from dispy.protocol.identity import random_name
from dispy.protocol.messages import (
    FINISHED,
    Body,
    Code,
    ComputationSpec,
    Done,
    Holding,
    Identity,
    Inventory,
    JobSpec,
    Prepare,
    Prepared,
    Release,
    Released,
    Run,
)
from dispy.protocol.payload import pack_object
from dispy.protocol.transport import Bus

from .behind_relays import OWN_PEERS, direct_only
from .conftest import StartNode
from .secured import KEYS
from .waiting import PATIENCE_S, is_there, until

pytestmark = direct_only(OWN_PEERS)

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
POLL_S = 0.02
Kind = TypeVar("Kind")


class Broker:
    """What nodes say to it is kept in order, until the test asks for it."""

    def __init__(self, name: str, port: int = 0) -> None:
        self._bus = Bus(KEYS)
        self.address = ""
        until(lambda: self._listens(port), "a free port")
        self.port = int(self.address.rpartition(":")[2])
        guard = Guard(name.encode(), KEYS)
        identity = Identity("broker", guard.instance, name, "0", PYTHON, "Linux")
        self._exchange = Exchange(identity, self._bus, random_name, guard=guard)
        self._heard: list[object] = []
        self._node = ""

    def _listens(self, port: int) -> bool:
        """A port is free a moment after the one that had it has closed it."""
        with suppress(OSError):
            self.address = self._bus.listen(f"127.0.0.1:{port}")
        return bool(self.address)

    def kill(self) -> None:
        """End it without a word."""
        self._bus.close()

    def dial(self, address: str) -> None:
        self._exchange.dial(address)

    def undial(self, address: str) -> None:
        self._exchange.undial(address)

    def tell(self, *messages: Body) -> None:
        for message in messages:
            self._exchange.send(self._node, message)
        self._exchange.flush(time.monotonic())

    def expect(self, kind: type[Kind], such: Callable[[Any], object] = bool) -> Kind:
        """Wait for a message, or an event of the session; others stay."""
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline:
            for each in self._heard:
                if isinstance(each, kind) and (such is bool or such(each)):
                    self._heard.remove(each)
                    return each
            self.step()
        raise AssertionError(f"no {kind.__name__}; there is {self._heard}")

    def step(self) -> None:
        """Do what is to be done now."""
        for arrival in self._bus.poll(POLL_S):
            self._hear(self._exchange.receive(arrival, time.monotonic()))
        self._hear(self._exchange.tick(time.monotonic()))
        self._exchange.flush(time.monotonic())

    def heard(self, kind: type[Kind]) -> list[Kind]:
        return [each for each in self._heard if isinstance(each, kind)]

    def _hear(self, events: list[Any]) -> None:
        for event in events:
            if isinstance(event, Joined):
                self._node = event.peer
            self._heard.append(event.message if isinstance(event, Received) else event)

    def prepare(self, number: int) -> None:
        """Have the node set up a computation."""
        layer = pack_object([], cloudpickle.dumps(({}, touch_and_wait, None, None)))
        spec = ComputationSpec("test", [Code(PYTHON, JobSpec(0, 0, layer))], pulse_interval=0.0)
        self.tell(Prepare(number, spec))
        assert not self.expect(Prepared, lambda message: message.computation == number).error

    def run(self, number: int, seq: int, *arguments: object) -> None:
        body = pack_object([], pickle.dumps((arguments, {})))
        self.tell(Run(number, [JobSpec(seq, 1, body)]))


def touch_and_wait(begun: str, until: str) -> None:
    import os
    import time

    with open(begun, "w") as file:
        file.write("begun\n")
    while not os.path.exists(until):
        time.sleep(0.01)


touch_and_wait.__module__ = "__main__"  # so that it goes by value


@pytest.fixture
def new_broker() -> Iterator[Callable[..., Broker]]:
    brokers: list[Broker] = []

    def new(name: str, port: int = 0) -> Broker:
        brokers.append(Broker(name, port))
        return brokers[-1]

    yield new
    for broker in brokers:
        broker.kill()


NewBroker = Callable[..., Broker]


def begin_job(broker: Broker, number: int, seq: int, folder: Path) -> Path:
    """Start a job; return the path of the file that it waits for."""
    go = folder / f"go-{number}-{seq}"
    broker.run(number, seq, str(folder / f"begun-{number}-{seq}"), str(go))
    is_there(folder / f"begun-{number}-{seq}")
    return go


def test_jobs_run_on_when_the_broker_is_killed_and_started_anew(
    start_node: StartNode, new_broker: NewBroker, folder: Path
) -> None:
    """Results that it hadn't acknowledged come again, and what runs is still running."""
    broker = new_broker("b")
    start_node("--broker", broker.address)
    broker.expect(Joined)
    broker.prepare(1)
    ends, runs = (begin_job(broker, 1, seq, folder) for seq in (1, 2))
    broker.kill()
    ends.touch()  # while it is away
    again = new_broker("b", broker.port)
    again.expect(Joined)
    holding = again.expect(Holding)
    assert holding.computations == [1] and (1, 2, 1) in holding.jobs
    again.tell(Inventory(holding.jobs))
    [result] = again.expect(Done).results
    assert (result.seq, result.status) == (1, FINISHED)
    runs.touch()
    [result] = again.expect(Done).results
    assert (result.seq, result.status) == (2, FINISHED)
    again.tell(Release(1))
    again.expect(Released)


def test_a_node_dials_for_as_long_as_it_takes(start_node: StartNode, new_broker: NewBroker) -> None:
    broker = new_broker("b")
    broker.kill()
    node = start_node("--broker", broker.address)
    later = new_broker("b", broker.port)
    later.expect(Joined)
    later.kill()
    new_broker("another", broker.port).expect(Joined)  # a new one, at the old place
    assert node.log().count("; still trying") <= 2


def taken_door(port: int) -> socket.socket:
    """Listen in place of a broker that was just killed, as soon as its port is free."""
    doors: list[socket.socket] = []

    def is_free() -> bool:
        with suppress(OSError):
            doors.append(socket.create_server(("127.0.0.1", port)))
        return bool(doors)

    until(is_free, "a free port")
    return doors[0]


def test_a_broker_that_is_away_for_long_does_not_fill_the_log(
    start_node: StartNode, new_broker: NewBroker
) -> None:
    broker = new_broker("b")
    node = start_node("--broker", broker.address)
    broker.expect(Joined)
    broker.expect(Holding)  # it has heard of it, too
    broker.kill()
    with taken_door(broker.port) as server:  # to count the attempts
        server.settimeout(PATIENCE_S)
        for _ in range(8):  # each is two connections
            server.accept()[0].close()
    new_broker("b", broker.port).expect(Joined)
    assert node.log().count("can't be reached") == 1, node.log()
    assert node.log().count("isn't a dispy peer") == 1, node.log()


def test_a_broker_that_dials_a_node_of_another_is_told_who_has_it(
    start_node: StartNode, new_broker: NewBroker
) -> None:
    home, other = new_broker("home"), new_broker("other")
    node = start_node("--broker", home.address)
    home.expect(Joined)
    other.dial(node.address)
    failed = other.expect(DialFailed)
    assert failed.reason == "refused: this node works for home at present"
    home.kill()
    other.expect(Joined)  # nobody has it now


def test_a_node_goes_home_when_the_other_needs_it_no_more(
    start_node: StartNode, new_broker: NewBroker, folder: Path
) -> None:
    """Its own broker comes while it works for another, whose jobs go on."""
    home = new_broker("home")
    home.kill()
    node = start_node("--broker", home.address)
    other = new_broker("other")
    other.dial(node.address)
    other.expect(Joined)
    other.prepare(1)
    go = begin_job(other, 1, 1, folder)
    home = new_broker("home", home.port)
    for _ in range(100):  # as long as a node pauses between two calls
        home.step()
        other.step()
    assert not home.heard(Holding) and not other.heard(Left)
    go.touch()
    assert other.expect(Done).results[0].status == FINISHED
    other.undial(node.address)
    other.tell(Release(1))
    other.expect(Released)
    home.expect(Joined)
    assert home.expect(Holding).computations == []
    assert other.expect(Left).reason == "it works for home now"
