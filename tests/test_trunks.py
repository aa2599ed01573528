"""A broker's exchange, real relays and nodes in memory: who hears what, what crosses how often.

The frames go by hand from one to the other; `Stage` is all that there is of a network.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import pytest

from dispy.protocol.arrivals import Arrival, Arrived, Down, HungUp, Route, Up
from dispy.protocol.events import Away, Back, Event, Joined, Left, Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.framecache import LONG_BYTES
from dispy.protocol.link import RELAYED_SILENCE_S, SILENCE_S
from dispy.protocol.messages import (
    CARRIED,
    DROPPED,
    INTRODUCED,
    LOST,
    VERSION_MAJOR,
    BlobPiece,
    BlobPieces,
    Body,
    Buffer,
    Cached,
    Envelope,
    Frame,
    Goodbye,
    Hello,
    Identity,
    Large,
    Refused,
    Relayed,
    Released,
    Unknown,
)
from dispy.protocol.pacing import Pacing
from dispy.protocol.wire import Codec
from dispy.relay.core import Relay

from .memoryshelf import MemoryShelf


def identity(role: str, name: str) -> Identity:
    return Identity(role, name, name, "0", "3", "Linux", 1)


class Port:
    """The transport of one process of a stage."""

    def __init__(self, stage: Stage, name: str) -> None:
        self.stage = stage
        self.name = name
        self.inbox: deque[Arrival] = deque()
        self.ends: dict[Route, tuple[Port, Route]] = {}
        self.is_full = False

    def dial(self, address: str) -> Route:
        self.stage.routes += 1
        route, other = self.stage.routes, self.stage.ports.get(address)
        if other is None:
            self.inbox.append(Down(route, "nobody is there", refused=True))
            return route
        back = b"%d" % route
        self.ends[route], other.ends[back] = (other, back), (self, route)
        self.inbox.append(Up(route))
        return route

    def drop(self, route: Route) -> None:
        if isinstance(route, int):
            self.stage.cut(self, route)

    def send(self, route: Route, frames: list[Buffer]) -> bool:
        if self.is_full:
            return False
        if route in self.ends:
            other, back = self.ends[route]
            self.stage.sent.append((self.name, other.name, frames))
            other.inbox.append(Arrived(back, frames))
        elif isinstance(route, bytes):
            self.inbox.append(Down(route, "it is gone"))
        return True


@dataclass
class Stage:
    """All processes, and time that passes when somebody says so."""

    now: float = 0.0
    routes: int = 0
    ports: dict[str, Port] = field(default_factory=dict)
    cores: dict[str, Exchange | Relay] = field(default_factory=dict)
    events: dict[str, list[Event]] = field(default_factory=dict)
    sent: list[tuple[str, str, list[Buffer]]] = field(default_factory=list)
    sessions: int = 0

    def name_session(self) -> str:
        self.sessions += 1
        return f"s{self.sessions}"

    def add(self, role: str, name: str) -> Exchange:
        """Start a broker or a node."""
        port = self.ports[name] = Port(self, name)
        exchange = Exchange(identity(role, name), port, self.name_session)
        self.cores[name] = exchange
        self.events[name] = []
        return exchange

    def add_relay(self, name: str) -> Relay:
        """Start a relay."""
        port = self.ports[name] = Port(self, name)
        relay = Relay(identity("relay", name), port, self.name_session, MemoryShelf)
        self.cores[name] = relay
        return relay

    def kill(self, name: str) -> None:
        """End a process; the system closes its connections."""
        port = self.ports.pop(name)
        del self.cores[name]
        for route in list(port.ends):
            self.cut(port, route)

    def cut(self, port: Port, route: Route) -> None:
        """Close a connection."""
        if route in port.ends:
            other, back = port.ends.pop(route)
            other.ends.pop(back, None)
            if isinstance(back, int):
                other.inbox.append(Down(back, "the connection was closed"))
            else:
                other.inbox.append(HungUp())

    def step(self) -> None:
        """Let everybody do what there is to do, until nothing is left."""
        for _ in range(100):
            for name, core in list(self.cores.items()):
                inbox = self.ports[name].inbox
                while inbox:
                    arrival = inbox.popleft()
                    events = core.receive(arrival, self.now)
                    self.events.setdefault(name, []).extend(events or [])
                events = core.tick(self.now)
                self.events.setdefault(name, []).extend(events or [])
                core.flush(self.now)
            if not any(port.inbox for port in self.ports.values()):
                return
        raise AssertionError("they never stop")

    def run(self, seconds: float) -> None:
        """Let time pass."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 0.125)
            self.step()

    def take(self, name: str) -> list[Event]:
        """Return what has happened to somebody since the last call."""
        events, self.events[name] = self.events[name], []
        return events

    def bytes_between(self, one: str, other: str) -> int:
        """Return how much was sent from one to the other."""
        return sum(
            len(frame)
            for source, target, frames in self.sent
            if (source, target) == (one, other)
            for frame in frames
        )


def stage_with(nodes: int, dialling: bool = True, relays: int = 1) -> tuple[Stage, Exchange]:
    """Put up a broker which dials a relay, further ones behind it, and nodes behind the last."""
    stage = Stage()
    broker = stage.add("broker", "broker")
    names = [f"relay{number}" for number in range(1, relays + 1)]
    for name, above in zip(names, ["", *names], strict=False):
        relay = stage.add_relay(name)
        if above:
            relay.dial_up(above)
    broker.dial("relay1")
    for number in range(1, nodes + 1):
        node = stage.add("node", f"node{number}")
        if dialling:
            node.dial(names[-1])
        else:
            last = stage.cores[names[-1]]
            assert isinstance(last, Relay)
            last.dial_down(f"node{number}")
    stage.run(4.0)
    return stage, broker


def joined(events: list[Event]) -> set[str]:
    return {event.peer for event in events if isinstance(event, Joined)}


def messages(events: list[Event]) -> list[Body]:
    return [event.message for event in events if isinstance(event, Received)]


@pytest.mark.parametrize("relays", [1, 2, 3])
@pytest.mark.parametrize("dialling", [True, False])
def test_messages_pass_both_ways(dialling: bool, relays: int) -> None:
    stage, broker = stage_with(2, dialling, relays)
    events = stage.take("broker")
    assert {"node1", "node2"} < joined(events)
    [event] = [each for each in events if isinstance(each, Joined) and each.peer == "node1"]
    assert event.via == f"relay{relays}"
    assert event.address == ("" if dialling else "node1")
    for node in ("node1", "node2"):
        assert joined(stage.take(node)) == {"broker"}
        broker.send(node, Released(7))
        core = stage.cores[node]
        assert isinstance(core, Exchange)
        core.send("broker", Released(8))
    stage.step()
    assert messages(stage.take("broker")) == [Released(8)] * 2
    assert messages(stage.take("node1")) == messages(stage.take("node2")) == [Released(7)]


@pytest.mark.parametrize("relays", [1, 2])
def test_a_relay_that_is_killed_loses_nothing(relays: int) -> None:
    stage, broker = stage_with(2, relays=relays)
    stage.take("broker")
    stage.kill("relay1")
    stage.step()
    away = {event.peer for event in stage.take("broker") if isinstance(event, Away)}
    assert {"node1", "node2", "relay1"} <= away
    node = stage.cores["node1"]
    assert isinstance(node, Exchange)
    node.send("broker", Released(1))
    broker.send("node1", Released(2))
    stage.run(1.0)
    stage.add_relay("relay1")
    stage.run(15.0)
    events = stage.take("broker")
    back = {event.peer for event in events if isinstance(event, Back)}
    assert {"node1", "node2"} <= back and not joined(events) & {"node1", "node2"}
    assert messages(events) == [Released(1)]
    assert messages(stage.take("node1")) == [Released(2)]


@pytest.mark.parametrize("dialling", [True, False])
def test_a_node_that_dies_is_lost_at_once_and_others_stay(dialling: bool) -> None:
    stage, _ = stage_with(2, dialling)
    stage.take("broker")
    stage.kill("node1")
    stage.run(1.5)
    events = [each for each in stage.take("broker") if isinstance(each, Away)]
    assert {event.peer for event in events} == {"node1"}
    assert any(event.gone for event in events) == (not dialling)  # only who dials can prove it


def test_a_file_crosses_the_trunk_once_for_all_nodes_behind_it() -> None:
    nodes, size = 5, 1 << 20
    stage, broker = stage_with(nodes, relays=2)
    content = b"".join(b"%8d" % number for number in range(size // 8))
    for number in range(1, nodes + 1):
        piece = BlobPiece(b"d", 0, b"", [Large(size, [content])])
        broker.send(f"node{number}", BlobPieces(1, number, [piece]))
        stage.run(1.0)
        [message] = messages(stage.take(f"node{number}"))
        assert isinstance(message, BlobPieces)
        assert message.pieces[0].parts[0].tobytes() == content
    for one, other in (("broker", "relay1"), ("relay1", "relay2")):
        assert size < stage.bytes_between(one, other) < 1.1 * size
    for number in range(1, nodes + 1):
        assert stage.bytes_between("relay2", f"node{number}") > size


def test_a_frame_that_the_relay_misses_comes_in_full() -> None:
    stage, broker = stage_with(2)
    relay = stage.cores["relay1"]
    assert isinstance(relay, Relay)
    content = bytes(100_000)
    pieces = BlobPieces(1, 1, [BlobPiece(b"d", 0, b"", [Large(len(content), [content])])])
    broker.send("node1", pieces)
    stage.run(1.0)
    relay._trunk._kept._memory.clear()  # what can only come of a lost message
    relay._trunk._kept._memory_bytes = 0
    stage.take("node2")
    broker.send("node2", pieces)
    stage.run(3.0)
    events = stage.take("node2")
    assert messages(events) == [pieces] and not joined(events)


def test_when_the_transport_takes_no_more_it_goes_on_later() -> None:
    stage, broker = stage_with(3)
    stage.ports["broker"].is_full = True
    for number in range(30):
        for node in ("node1", "node2", "node3"):
            part = Large(1 << 20, [bytes([number]) * (1 << 20)])
            broker.send(node, BlobPieces(1, 1, [BlobPiece(b"d", 0, b"", [part])]))
    stage.run(1.0)
    stage.ports["broker"].is_full = False
    stage.run(2.0)
    for node in ("node1", "node2", "node3"):
        assert len(messages(stage.take(node))) == 30


def test_a_mark_that_was_lost_stops_nothing_for_long() -> None:
    pacing = Pacing(Codec())
    for number in range(100):
        pacing.add(number, [bytes(1 << 16)])
    taken: list[list[Buffer]] = []

    def take(frames: list[Buffer]) -> bool:
        taken.append(frames)
        return True

    pacing.flush(0.0, take)
    before = len(taken)
    pacing.flush(1.0, take)
    assert len(taken) == before < 100
    pacing.flush(5.0, take)
    assert len(taken) == before + 1
    frame, _ = Codec().decode(taken[-1][0])
    assert isinstance(frame, Relayed)
    pacing.marked(frame.child, 5.0)
    pacing.flush(5.0, take)
    assert len(taken) > before + 1
    pacing.check()


# -- what only a relay may do, and what relays may not ----------------------------------------


class Hand:
    """A relay played by hand, that has a session with a broker."""

    def __init__(self, role: str = "relay") -> None:
        self.sent: list[Buffer] = []
        self.frames: list[tuple[Route, list[Buffer]]] = []
        self.broker = Exchange(identity("broker", "b"), self, lambda: "s")
        self.codec = Codec()
        self.say(Hello(VERSION_MAJOR, 0, identity(role, "r")))
        self.take()

    def dial(self, address: str) -> Route:
        raise AssertionError

    def drop(self, route: Route) -> None:
        pass

    def send(self, route: Route, frames: list[Buffer]) -> bool:
        self.frames.append((route, frames))
        return True

    def say(self, *frames: Frame, route: bytes = b"1") -> list[Event]:
        """Send a message of some headers."""
        encoded: list[Buffer] = [self.codec.encode(frame)[0] for frame in frames]
        events = self.broker.receive(Arrived(route, encoded), 0.0)
        self.broker.flush(0.0)
        return events

    def take(self) -> list[Frame]:
        """Return all headers that have come."""
        frames, self.frames = self.frames, []
        return [self.codec.decode(each)[0] for _, message in frames for each in message]


def test_only_a_relay_may_bring_others() -> None:
    hand = Hand("node")
    [left] = hand.say(Relayed(1), Hello(VERSION_MAJOR, 0, identity("node", "n")))
    assert isinstance(left, Left) and left.peer == "r"
    assert any(isinstance(frame, Goodbye) for frame in hand.take())


@pytest.mark.parametrize("role", ["client", "broker"])
def test_a_relay_brings_nodes_and_relays_only(role: str) -> None:
    hand = Hand()
    assert hand.say(Relayed(1), Hello(VERSION_MAJOR, 0, identity(role, "n"))) == []
    [carried, refused, *_] = hand.take()
    assert carried == Relayed(1, CARRIED)
    assert isinstance(refused, Refused) and "relay" in refused.reason


def test_a_relay_is_not_behind_itself() -> None:
    hand = Hand()
    assert hand.say(Relayed(1), Hello(VERSION_MAJOR, 0, identity("relay", "r"))) == []
    assert any(isinstance(frame, Refused) for frame in hand.take())


def test_relays_in_a_row_are_not_without_end() -> None:
    hand = Hand()
    for depth in range(1, 20):
        above = [Relayed(1)] * depth
        hand.say(*above, Hello(VERSION_MAJOR, 0, identity("relay", f"r{depth}")))
    assert len(hand.broker.links) < 12


def test_frames_that_never_came_are_an_offence() -> None:
    hand = Hand()
    [left] = hand.say(Cached([(1, b"x")]))
    assert isinstance(left, Left)


def test_who_is_introduced_and_does_not_answer_is_dropped() -> None:
    hand = Hand()
    hand.say(Relayed(1, INTRODUCED, "10.0.0.1:1"))
    frames = hand.take()
    assert any(isinstance(frame, Hello) for frame in frames)
    hand.broker.tick(5.0)
    hand.broker.flush(5.0)
    assert Relayed(1, DROPPED) in hand.take()


def test_who_refuses_is_dropped_for_a_longer_time() -> None:
    hand = Hand()
    hand.say(Relayed(1, INTRODUCED, "10.0.0.1:1"))
    hand.take()
    assert hand.say(Relayed(1), Refused("no")) == []
    assert Relayed(1, DROPPED, "", True) in hand.take()


def test_what_comes_over_an_unknown_trunk_is_answered_once() -> None:
    hand = Hand()
    hand.say(Relayed(1), Hello(VERSION_MAJOR, 0, identity("node", "n")), route=b"2")
    assert hand.take() == [Unknown()]


def test_a_peer_that_is_lost_and_later_proven_dead_is_gone() -> None:
    hand = Hand()
    hand.say(Relayed(1), Hello(VERSION_MAJOR, 0, identity("node", "n")))
    assert hand.say(Relayed(1, LOST, "closed")) == [Away("n", "closed")]
    assert hand.say(Relayed(1, LOST, "refused", True)) == [Away("n", "refused", True)]
    assert hand.say(Relayed(1, LOST, "refused", True)) == []


def test_behind_a_relay_silence_may_be_longer() -> None:
    hand = Hand()
    hand.say(Relayed(1), Hello(VERSION_MAJOR, 0, identity("node", "n")))
    assert hand.broker.tick(SILENCE_S + 1.0) == []
    assert {each.peer for each in hand.broker.tick(RELAYED_SILENCE_S + 1.0)} == {"n", "r"}  # type: ignore[union-attr]


def test_short_frames_are_not_remembered() -> None:
    hand = Hand()
    for child in (1, 2):
        hand.say(Relayed(child), Hello(VERSION_MAJOR, 0, identity("node", f"n{child}")))
    part = Large(LONG_BYTES - 1, [bytes(LONG_BYTES - 1)])
    for _ in range(2):
        hand.broker.send("n1", BlobPieces(1, 1, [BlobPiece(b"d", 0, b"", [part])]))
    hand.frames.clear()
    hand.broker.flush(0.0)
    assert not any(isinstance(hand.codec.decode(m[0])[0], Cached) for _, m in hand.frames)


def test_an_envelope_of_a_lost_peer_is_answered_with_unknown() -> None:
    hand = Hand()
    assert hand.say(Relayed(9), Envelope(1, 1, 0, [Released(1)])) == []
    assert hand.take()[:2] == [Relayed(9), Unknown()]
