"""Sessions over a transport that is played by hand: who is told what, and when."""

from __future__ import annotations

import msgspec
import pytest

from dispy.protocol import handshake
from dispy.protocol import link as links
from dispy.protocol.arrivals import Arrived, Route, Up
from dispy.protocol.events import Event, Joined, Left, Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.link import ACK_ENVELOPES
from dispy.protocol.messages import (
    VERSION_MAJOR,
    VERSION_MINOR,
    Buffer,
    Envelope,
    Frame,
    Goodbye,
    Hello,
    Identity,
    Refused,
    Released,
    Unknown,
    Welcome,
)
from dispy.protocol.wire import Codec

BROKER = Identity("broker", "b", "broker", "0", "3", "Linux")
NODE = Identity("node", "n", "node", "0", "3", "Linux")


class Wire:
    """A transport that keeps what is sent."""

    def __init__(self) -> None:
        self.sent: list[tuple[Route, Frame]] = []
        self.dialled = 0
        self.is_stuck = False

    def dial(self, address: str) -> Route:
        self.dialled += 1
        return self.dialled

    def drop(self, route: Route) -> None:
        pass

    def send(self, route: Route, frames: list[Buffer]) -> bool:
        if not self.is_stuck:
            self.sent.append((route, Codec().decode(frames[0])[0]))
        return not self.is_stuck

    def take(self) -> list[tuple[Route, Frame]]:
        """Take out what was sent."""
        sent, self.sent = self.sent, []
        return sent


def said(frame: Frame) -> list[Buffer]:
    """Encode a frame."""
    return [Codec().encode(frame)[0]]


def greeted(exchange: Exchange, wire: Wire, route: bytes, name: str = "n") -> Welcome:
    """Have a node begin a session."""
    who = msgspec.structs.replace(NODE, instance=name)
    hello = Hello(VERSION_MAJOR, VERSION_MINOR, who)
    [event] = exchange.receive(Arrived(route, said(hello)), 0.0)
    assert isinstance(event, Joined)
    exchange.flush(0.0)
    (_, welcome), *_ = wire.take()
    assert isinstance(welcome, Welcome)
    return welcome


def test_nothing_is_acknowledged_before_the_flush_not_even_by_a_greeting() -> None:
    """The receiver may have to keep what has come, and may die before it has."""
    wire = Wire()
    exchange = Exchange(BROKER, wire, lambda: "s")
    welcome = greeted(exchange, wire, b"1")
    envelope = Envelope(welcome.epoch, 1, 0, [Released(7)])
    assert exchange.receive(Arrived(b"1", said(envelope)), 1.0) == [Received("n", Released(7))]
    again = Hello(VERSION_MAJOR, VERSION_MINOR, NODE, "s", 0)
    exchange.receive(Arrived(b"2", said(again)), 1.0)
    assert wire.take() == []
    exchange.flush(1.0)
    assert (b"2", Welcome(VERSION_MINOR, BROKER, "s", 2, 1)) in wire.take()


def test_a_dialled_peer_is_greeted_in_the_flush() -> None:
    wire = Wire()
    exchange = Exchange(BROKER, wire, lambda: "s")
    exchange.dial("127.0.0.1:9700")
    exchange.tick(0.0)
    exchange.receive(Up(1), 0.0)
    assert wire.take() == []
    exchange.flush(0.0)
    assert wire.take() == [(1, Hello(VERSION_MAJOR, VERSION_MINOR, BROKER))]


def test_a_goodbye_comes_after_the_greeting() -> None:
    wire = Wire()
    exchange = Exchange(BROKER, wire, lambda: "s")
    hello = Hello(VERSION_MAJOR, VERSION_MINOR, NODE)
    exchange.receive(Arrived(b"1", said(hello)), 0.0)
    exchange.goodbye("n", "no")
    assert [type(frame).__name__ for _, frame in wire.take()] == ["Welcome", "Goodbye"]
    exchange.flush(0.0)
    assert wire.take() == []


def test_what_arrives_is_acknowledged_late_if_this_process_must_outlive_it_first() -> None:
    wire = Wire()
    exchange = Exchange(BROKER, wire, lambda: "s")
    exchange.ack_late()
    welcome = greeted(exchange, wire, b"1")
    envelope = Envelope(welcome.epoch, 1, 0, [Released(7)])
    exchange.receive(Arrived(b"1", said(envelope)), 1.0)
    exchange.send("n", Released(8))
    exchange.flush(1.0)
    assert [frame.ack for _, frame in wire.take() if isinstance(frame, Envelope)] == [0]
    again = Hello(VERSION_MAJOR, VERSION_MINOR, NODE, "s", 0)
    exchange.receive(Arrived(b"2", said(again)), 1.0)
    exchange.flush(1.0)
    assert (b"2", Welcome(VERSION_MINOR, BROKER, "s", 2, 0)) in wire.take()
    exchange.confirm(2.0)
    exchange.send("n", Released(9))
    exchange.flush(2.0)
    assert [frame.ack for _, frame in wire.take() if isinstance(frame, Envelope)] == [1]


def test_late_acknowledgements_are_given_when_they_are_due() -> None:
    wire = Wire()
    exchange = Exchange(BROKER, wire, lambda: "s")
    exchange.ack_late()
    welcome = greeted(exchange, wire, b"1")
    for seq in range(1, ACK_ENVELOPES + 1):
        envelope = Envelope(welcome.epoch, seq, 0, [Released(seq)])
        exchange.receive(Arrived(b"1", said(envelope)), 0.0)
    exchange.flush(0.0)
    assert wire.take() == []
    exchange.confirm(0.0)
    exchange.flush(0.0)
    assert [frame.ack for _, frame in wire.take() if isinstance(frame, Envelope)] == [ACK_ENVELOPES]


# -- what one peer can have another hold for it ---------------------------------------------


def test_who_sends_payloads_without_an_end_leaves_and_others_stay() -> None:
    wire = Wire()
    exchange = Exchange(BROKER, wire, lambda: "s")
    exchange.incomplete_max_bytes = 1 << 20
    liar, honest = greeted(exchange, wire, b"1"), greeted(exchange, wire, b"2", "honest")
    chunk = b"x" * (1 << 17)

    def send(route: bytes, epoch: int, seq: int) -> list[Event]:
        frames = [*said(Envelope(epoch, seq, 0, [], more=True)), chunk]
        return exchange.receive(Arrived(route, frames), 1.0)

    for seq in range(1, 8):
        assert send(b"1", liar.epoch, seq) == []
    [left] = send(b"2", honest.epoch, 1)  # the one that is too much needn't be of the offender
    assert isinstance(left, Left) and left.peer == "n" and left.offended
    assert "than there is room for" in left.reason
    [(route, goodbye)] = wire.take()
    assert route == b"1" and isinstance(goodbye, Goodbye) and "room" in goodbye.reason
    assert list(exchange.links) == ["honest"]
    assert exchange.receive(Arrived(b"1", said(Envelope(1, 9, 0, [], more=True))), 1.0) == []
    last = Envelope(honest.epoch, 2, 0, [Released(7)])
    assert exchange.receive(Arrived(b"2", said(last)), 1.0) == [
        Left("honest", "it broke the protocol: a payload that no header mentions", True)
    ]


def test_who_takes_in_nothing_is_not_answered_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "OWED_MAX", 100)
    wire = Wire()
    exchange = Exchange(BROKER, wire, lambda: "s")
    greeted(exchange, wire, b"1")
    wire.is_stuck = True
    for number in range(101):
        exchange.send("n", Released(number))
        exchange.flush(1.0)
    assert exchange.tick(1.0) == []  # one is on its way
    for number in range(100):
        exchange.send("n", Released(number))
    assert [type(event) for event in exchange.tick(2.0)] == [Left]
    assert not exchange.links


def test_another_version_is_refused_in_words() -> None:
    wire = Wire()
    exchange = Exchange(BROKER, wire, lambda: "s")
    hello = Hello(VERSION_MAJOR + 1, 0, NODE)
    assert exchange.receive(Arrived(b"1", said(hello)), 1.0) == [] and not exchange.links
    ((_, answer),) = wire.take()
    assert isinstance(answer, Refused)
    for part in (f"version {VERSION_MAJOR} ", f"version {VERSION_MAJOR + 1} ", "the same release"):
        assert part in answer.reason
    exchange.receive(Arrived(b"2", said(Hello(VERSION_MAJOR, VERSION_MINOR + 1, NODE))), 1.0)
    exchange.flush(1.0)
    ((_, welcome),) = wire.take()
    assert isinstance(welcome, Welcome) and welcome.minor == VERSION_MINOR


def test_there_are_so_many_peers_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handshake, "LINKS_MAX", 2)
    wire = Wire()
    exchange = Exchange(BROKER, wire, lambda: "s")
    greeted(exchange, wire, b"1", "one")
    greeted(exchange, wire, b"2", "two")
    third = Hello(VERSION_MAJOR, VERSION_MINOR, NODE)
    assert exchange.receive(Arrived(b"3", said(third)), 1.0) == []
    assert wire.take() == [(b"3", Refused("broker has 2 peers already, and takes no more"))]
    greeted(exchange, wire, b"4", "two")  # who is known may come back


def test_who_is_unknown_before_its_hello_is_answered_says_it_again_soon() -> None:
    """A relay has another connection to its broker by now, and what was on the old one is lost."""
    wire = Wire()
    exchange = Exchange(NODE, wire, lambda: "s")
    exchange.dial("127.0.0.1:9700")
    exchange.tick(0.0)
    exchange.receive(Up(1), 0.0)
    exchange.flush(0.0)
    assert exchange.receive(Arrived(1, said(Unknown())), 0.1) == []
    now = exchange.deadline()
    assert now < 0.5
    exchange.tick(now)
    assert wire.dialled == 2
    exchange.check()
