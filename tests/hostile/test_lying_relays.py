"""What a relay, or a broker behind a relay's back, can have the other hold for it."""

from __future__ import annotations

import pytest

from dispy.protocol import trunks
from dispy.protocol.arrivals import Arrived, Route
from dispy.protocol.dials import DIALLED_MAX
from dispy.protocol.exchange import Exchange
from dispy.protocol.messages import (
    INTRODUCED,
    MARK,
    VERSION_MAJOR,
    Buffer,
    Frame,
    Hello,
    Identity,
    Refused,
    Relayed,
    Welcome,
)
from dispy.protocol.pacing import size_of
from dispy.protocol.wire import FRAMES_MAX, Codec
from dispy.relay import trunk as relay_trunk
from dispy.relay.core import Relay
from tests.memoryshelf import MemoryShelf

BROKER = Identity("broker", "b", "boss", "0", "3", "Linux")
LIAR = Identity("relay", "r", "liar", "0", "3", "Linux")
TRUNK, DOOR = b"trunk", b"door"
LIMIT_BYTES = 1 << 20  # for what would take long otherwise
CODEC = Codec()


class Wire:
    """A transport whose other side may stop to listen."""

    def __init__(self) -> None:
        self.sent: list[tuple[Route, list[Buffer]]] = []
        self.is_stuck = False

    def dial(self, address: str) -> Route:
        return 1

    def drop(self, route: Route) -> None:
        """Nothing is connected."""

    def send(self, route: Route, frames: list[Buffer]) -> bool:
        if not self.is_stuck:
            self.sent.append((route, frames))
        return not self.is_stuck


def encoded(*frames: Frame) -> list[Buffer]:
    return [CODEC.encode(frame)[0] for frame in frames]


def hello(who: Identity) -> Hello:
    return Hello(VERSION_MAJOR, 0, who)


def answer(wire: Wire) -> Frame:
    return CODEC.decode(wire.sent[-1][1][-1])[0]


@pytest.fixture
def wire() -> Wire:
    return Wire()


@pytest.fixture
def broker(wire: Wire) -> Exchange:
    """A broker to which a relay has come that doesn't answer marks."""
    exchange = Exchange(BROKER, wire, lambda: "session")
    exchange.receive(Arrived(TRUNK, encoded(hello(LIAR))), 0.0)
    exchange.flush(0.0)
    assert isinstance(answer(wire), Welcome)
    return exchange


def test_a_relay_that_introduces_without_end_is_greeted_no_more(broker: Exchange) -> None:
    for number in range(DIALLED_MAX + 1000):
        broker.receive(Arrived(TRUNK, encoded(Relayed(number + 1, INTRODUCED, "x"))), 0.0)
    assert len(broker._connections.dials.by_route) == DIALLED_MAX
    broker.check()


def test_what_a_relay_does_not_take_in_is_not_kept_for_it(
    broker: Exchange, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that it brings is answered, but it answers no mark itself."""
    monkeypatch.setattr(trunks, "WAITING_MAX_BYTES", LIMIT_BYTES)
    below = Identity("relay", "s", "behind", "0", "3", "Linux")
    broker.receive(Arrived(TRUNK, encoded(Relayed(1), hello(below))), 0.0)
    question = encoded(Relayed(1), Relayed(7, MARK))
    for _ in range(2 * LIMIT_BYTES // size_of(question)):
        broker.receive(Arrived(TRUNK, question), 0.0)
    trunk = broker._connections.trunks.of(TRUNK)
    assert trunk is not None
    assert LIMIT_BYTES <= trunk.pacing.waiting_bytes < LIMIT_BYTES + 1000
    broker.check()


def test_a_broker_that_marks_without_end_gets_no_answers(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_trunk, "MARKED_MAX_BYTES", LIMIT_BYTES)
    relay = Relay(LIAR, wire, lambda: "session", MemoryShelf)
    relay.receive(Arrived(TRUNK, encoded(hello(BROKER))), 0.0)
    relay.flush(0.0)
    assert relay.trunk == TRUNK
    mark = Arrived(TRUNK, encoded(Relayed(1, MARK)))
    wire.is_stuck = True
    for _ in range(2 * LIMIT_BYTES // size_of(encoded(Relayed(1, MARK)))):
        relay.receive(mark, 0.0)
    assert LIMIT_BYTES <= relay._trunk.waiting_bytes < LIMIT_BYTES + 1000
    relay.check()


@pytest.mark.parametrize("role", ["client", "node"])
def test_nobody_has_two_roles(wire: Wire, broker: Exchange, role: str) -> None:
    other = Identity(role, LIAR.instance, "liar", "0", "3", "Linux")
    assert not broker.receive(Arrived(DOOR, encoded(hello(other))), 0.0)
    assert isinstance(answer(wire), Refused)
    assert broker.links[LIAR.instance].route == TRUNK


def test_nor_behind_a_relay(wire: Wire, broker: Exchange) -> None:
    program = Identity("client", "c", "program", "0", "3", "Linux")
    broker.receive(Arrived(DOOR, encoded(hello(program))), 0.0)
    node = Identity("node", "c", "program", "0", "3", "Linux")
    assert not broker.receive(Arrived(TRUNK, encoded(Relayed(1), hello(node))), 0.0)
    broker.flush(0.0)
    assert isinstance(answer(wire), Refused)
    assert broker.links["c"].route == DOOR


def test_a_message_of_very_many_frames_ends_the_session(broker: Exchange) -> None:
    frames = [*encoded(Relayed(1)), *[b""] * FRAMES_MAX]
    broker.receive(Arrived(TRUNK, frames), 0.0)
    assert not broker.links
    broker.check()


def test_what_is_kept_of_all_who_are_introduced_is_short(broker: Exchange) -> None:
    broker.receive(Arrived(TRUNK, encoded(Relayed(1, INTRODUCED, "x" * 1001))), 0.0)
    assert not broker._connections.dials.by_route and not broker.links


def test_and_so_is_what_peers_say_of_themselves(wire: Wire, broker: Exchange) -> None:
    who = Identity("node", "n", "x" * 1001, "0", "3", "Linux")
    assert not broker.receive(Arrived(DOOR, encoded(hello(who))), 0.0)
    assert set(broker.links) == {LIAR.instance}
