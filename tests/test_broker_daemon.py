"""The broker's shell over a transport that is played by hand, with a journal in memory."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from msgspec.structs import replace

from dispy.broker import unheard
from dispy.broker.daemon import BrokerDaemon
from dispy.broker.journal import Journal
from dispy.broker.settings import Settings
from dispy.protocol.arrivals import Arrival, Arrived, Route, Up
from dispy.protocol.events import Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.guard import Guard, instance_of
from dispy.protocol.messages import (
    DRAIN,
    FINISHED,
    Body,
    Buffer,
    Code,
    ComputationSpec,
    Done,
    Holding,
    Identity,
    JobResult,
    JobSpec,
    NodeSpec,
    OpenCluster,
    Operate,
    Prepared,
    Results,
    Submit,
)
from dispy.protocol.wire import chunked

MIB = 1 << 20
CLIENT, NODE = instance_of(b"c"), instance_of(b"n")  # of the peers that are called so


class Peer:
    """Someone who has dialled the broker; what it is told waits in ``coming`` until it reads."""

    def __init__(self, world: World, role: str, name: str) -> None:
        self.world = world
        self.coming: list[list[Buffer]] = []
        self.heard: list[Body] = []
        guard = Guard(name.encode())
        who = Identity(role, guard.instance, name, "0", "3", "Linux", 8)
        self.exchange = Exchange(who, self, lambda: name, guard=guard)
        world.peers[name.encode()] = self
        self.route = name.encode()
        self.exchange.dial("broker")
        self.exchange.tick(world.now)
        self.exchange.receive(Up(1), world.now)
        self.tell()
        self.read()

    def dial(self, address: str) -> Route:
        return 1

    def drop(self, route: Route) -> None:
        raise AssertionError("nothing goes wrong here")

    def send(self, route: Route, frames: list[Buffer]) -> bool:
        self.world.arrivals.append(Arrived(self.route, frames))
        return True

    def tell(self, *messages: Body) -> None:
        """Say something to the broker, and let it act."""
        for message in messages:
            for broker in self.exchange.links:
                self.exchange.send(broker, message)
        self.exchange.flush(self.world.now)
        self.world.turn()

    def read(self) -> None:
        """Take in what has come, and let the broker know."""
        coming, self.coming = self.coming, []
        for frames in coming:
            for event in self.exchange.receive(Arrived(1, frames), self.world.now):
                if isinstance(event, Received):
                    self.heard.append(event.message)
        self.exchange.tick(self.world.now)
        self.tell()


class World:
    """A broker and its peers; it is the broker's bus as well."""

    keys = None

    def __init__(self, reaches_out: bool = True) -> None:
        self.now = 0.0
        self.dialled: list[str] = []
        self.arrivals: list[Arrival] = []
        self.peers: dict[bytes, Peer] = {}
        self.journal = Journal(None)
        bus: Any = self
        self.daemon = BrokerDaemon(
            bus,
            "0",
            "b",
            Settings(durable=True, shared=True),
            self.journal,
            reaches_out=reaches_out,
        )

    def turn(self, seconds: float = 0.0) -> None:
        """Have the broker do what is to be done."""
        self.now += seconds
        arrivals, self.arrivals = self.arrivals, []
        self.daemon.turn(arrivals, self.now)
        self.daemon.scheduler.check()

    def send(self, route: Route, frames: list[Buffer]) -> bool:
        assert isinstance(route, bytes)
        self.peers[route].coming.append(frames)
        return True

    def dial(self, address: str) -> Route:
        self.dialled.append(address)
        return len(self.dialled)

    def drop(self, route: Route) -> None:
        assert isinstance(route, bytes)
        self.peers[route].coming.clear()


def opening() -> OpenCluster:
    """Return a cluster that uses all nodes."""
    spec = ComputationSpec("c", [Code("3.11", JobSpec(0, 0, b"f"))])
    return OpenCluster(1, spec, [NodeSpec("*")])


def test_results_on_disk_are_read_as_their_client_takes_them_in(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They may be many times what fits into memory."""
    monkeypatch.setattr(unheard, "MEMORY_MAX", 0)
    world, count = World(), 100
    client, node = Peer(world, "client", "c"), Peer(world, "node", "n")
    client.tell(opening(), Submit(1, [JobSpec(seq, 0, b"x") for seq in range(1, count + 1)]))
    [number] = world.daemon.scheduler.clusters
    node.tell(Holding([], []), Prepared(number))
    monkeypatch.setattr(world.daemon.scheduler.clusters[number].client, "away_since", 0.0)
    for seq in range(1, count + 1):
        large = [JobResult(seq, 1, FINISHED, 1.0, 2.0, b"", [chunked(bytes(MIB))])]
        node.read()
        node.tell(Done(number, large))
    client.read()
    world.daemon.scheduler.back(CLIENT)
    for _ in range(10):
        world.turn(0.01)
    waiting = sum(len(frame) for frames in client.coming for frame in frames)
    queued = world.daemon.exchange.links[CLIENT].undelivered()
    assert waiting <= 17 * MIB
    assert 0 < len([each for each in queued if isinstance(each, Results)]) < count // 2
    for _ in range(5 * count):
        client.read()
        node.read()
        world.turn(0.01)
    said = [message for message in client.heard if isinstance(message, Results)]
    assert [result.seq for each in said for result in each.results] == [*range(1, count + 1)]


def test_a_broker_that_was_stopped_gives_nobody_up_at_once() -> None:
    """Who was away then has had nobody to come back to."""
    world = World()
    client, node = Peer(world, "client", "c"), Peer(world, "node", "n")
    client.tell(opening())
    node.tell(Holding([], []))
    scheduler = world.daemon.scheduler
    scheduler.away(NODE, "reset", False, world.now)
    scheduler.away(CLIENT, "reset", False, world.now)
    world.turn(1.0)
    world.turn(10 * Settings().client_lease_s)
    [cluster] = scheduler.clusters.values()
    assert NODE in scheduler.nodes and not cluster.closing
    for _ in range(int(2 * Settings().client_lease_s)):
        world.turn(1.0)
    assert NODE not in scheduler.nodes and cluster.meta.expired


def test_the_log_says_what_becomes_of_nodes_and_clusters(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "dispy.broker")
    world = World()
    client, node = Peer(world, "client", "c"), Peer(world, "node", "n")
    client.tell(opening(), Submit(1, [JobSpec(1, 0, b"x")]))
    node.tell(Holding([], []))
    client.tell(Operate(1, DRAIN, "n", reason="new disk"))
    world.daemon.scheduler.away(CLIENT, "reset", False, world.now)
    for _ in range(int(2 * Settings().client_lease_s)):
        world.turn(1.0)
    said = [record.getMessage() for record in caplog.records]
    assert "node 'n' joined" in said and "node 'n' is drained: new disk" in said
    assert "node 'n' can't be reached: silent for 3.5 s" in said and "node 'n' is given up" in said
    assert any(text.endswith("of '' is given up: its program is away") for text in said)


@pytest.mark.parametrize("reaches_out", [True, False])
def test_without_a_secret_nobody_has_it_dial_other_machines(reaches_out: bool) -> None:
    world = World(reaches_out)
    client = Peer(world, "client", "c")
    hosts = ("127.0.0.1", "10.0.0.5", "::1", "fd00::5")
    client.tell(replace(opening(), nodes=[NodeSpec(host, port=9701) for host in hosts]))
    world.turn(1.0)
    here = {"127.0.0.1:9701", "[::1]:9701"}
    others = {"10.0.0.5:9701", "[fd00::5]:9701"}
    assert set(world.dialled) == (here | others if reaches_out else here)
