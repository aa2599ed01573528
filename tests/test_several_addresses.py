"""A peer that may be reached at several addresses, or that dials us while we dial it."""

from __future__ import annotations

from collections import deque

from dispy.protocol.arrivals import Arrived, Down, Route, Up
from dispy.protocol.dials import GREETING_S
from dispy.protocol.events import DialFailed, Event, Joined, Left
from dispy.protocol.exchange import Exchange
from dispy.protocol.messages import Buffer, Hello, Identity
from dispy.protocol.wire import Codec


class Wire:
    """A transport that notes what is dialled and dropped, and delivers what is said."""

    def __init__(self) -> None:
        self.dialled: dict[str, int] = {}  # by address: the route
        self.routes = 0
        self.dropped: list[Route] = []
        self.sent: deque[tuple[Route, list[Buffer]]] = deque()

    def dial(self, address: str) -> Route:
        self.routes += 1
        self.dialled[address] = self.routes
        return self.routes

    def drop(self, route: Route) -> None:
        self.dropped.append(route)

    def send(self, route: Route, frames: list[Buffer]) -> bool:
        self.sent.append((route, frames))
        return True

    def hellos(self) -> list[Route]:
        """Return where a Hello was said."""
        return [
            route for route, frames in self.sent if isinstance(Codec().decode(frames[0])[0], Hello)
        ]


class Side:
    """One of the two that talk."""

    def __init__(self, role: str, instance: str) -> None:
        self.wire = Wire()
        identity = Identity(role, instance, instance, "0", "3", "Linux")
        self.sessions = 0
        self.exchange = Exchange(identity, self.wire, self._name)
        self.events: list[Event] = []

    def _name(self) -> str:
        self.sessions += 1
        return f"{self.exchange.identity.instance}{self.sessions}"

    def tick(self, now: float) -> None:
        self.events += self.exchange.tick(now)
        self.exchange.flush(now)

    def hear(self, arrival: Arrived | Up | Down, now: float = 0.0) -> None:
        self.events += self.exchange.receive(arrival, now)
        self.exchange.flush(now)


def answer(one: Side, other: Side, route: Route, accepted: bytes, now: float = 0.0) -> None:
    """Carry what one says over a dialled connection to the other, and back."""
    while any(r == route for r, _ in one.wire.sent) or any(
        r == accepted for r, _ in other.wire.sent
    ):
        carry(one, other, route, accepted, now)
        carry(other, one, accepted, route, now)


def carry(one: Side, other: Side, route: Route, arrives: Route, now: float = 0.0) -> None:
    """Carry what one says over a connection to the other."""
    said = [frames for r, frames in one.wire.sent if r == route]
    one.wire.sent = deque((r, frames) for r, frames in one.wire.sent if r != route)
    for frames in said:
        other.hear(Arrived(arrives, frames), now)


def started() -> tuple[Side, Side]:
    """A broker that has found a node at three addresses, and dials them."""
    broker, node = Side("broker", "b"), Side("node", "n")
    for address in ("dead:1", "slow:1", "good:1"):
        broker.exchange.dial(address, "n")
    broker.tick(0.0)
    assert list(broker.wire.dialled) == ["dead:1", "slow:1", "good:1"]
    return broker, node


def test_all_are_dialled_and_the_first_that_works_is_kept() -> None:
    broker, node = started()
    broker.hear(Down(1, "refused"))
    broker.hear(Up(3))
    answer(broker, node, 3, b"x")
    assert broker.events[0] == DialFailed("dead:1", "refused")
    (joined,) = [event for event in broker.events if isinstance(event, Joined)]
    assert joined.address == "good:1"
    assert broker.wire.dropped == [1, 2]
    broker.tick(3.0)
    assert broker.wire.routes == 3  # none of the others is tried as long as it works


def test_only_one_says_hello_at_a_time() -> None:
    broker, node = started()
    broker.hear(Up(2))
    broker.hear(Up(3))
    assert broker.wire.hellos() == [2]
    answer(broker, node, 2, b"x")
    assert 3 in broker.wire.dropped
    assert node.sessions == 1
    assert [type(event) for event in broker.events] == [Joined]


def test_the_next_does_when_that_one_fails() -> None:
    broker, node = started()
    broker.hear(Up(2))
    broker.hear(Up(3))
    broker.hear(Down(2, "gone"), 0.1)
    broker.tick(0.5)
    answer(broker, node, 3, b"x", 0.5)
    assert [type(event) for event in broker.events] == [DialFailed, Joined]


def test_or_when_it_is_not_answered() -> None:
    broker, node = started()
    broker.hear(Up(2))
    broker.hear(Up(3))
    broker.tick(GREETING_S + 0.1)
    broker.tick(GREETING_S + 0.5)
    answer(broker, node, 3, b"x", GREETING_S + 0.5)
    assert isinstance(broker.events[-1], Joined)


def test_another_that_answers_there_is_not_wanted() -> None:
    broker, _ = started()
    stranger = Side("node", "other")
    broker.hear(Up(3))
    answer(broker, stranger, 3, b"x")
    (failed,) = broker.events
    assert isinstance(failed, DialFailed)
    assert "another process" in failed.reason
    assert not broker.exchange.links


def test_a_refused_address_that_never_worked_proves_nothing() -> None:
    broker, node = started()
    broker.hear(Up(3))
    answer(broker, node, 3, b"x")
    broker.events.clear()
    broker.hear(Down(3, "closed"), 1.0)
    broker.tick(2.0)
    broker.hear(Down(broker.wire.dialled["dead:1"], "refused", True), 2.0)
    assert not any(isinstance(event, Left) for event in broker.events)
    assert not any(getattr(event, "gone", False) for event in broker.events)
    assert "n" in broker.exchange.links


def test_what_is_asked_for_otherwise_stays_when_a_hint_is_dropped() -> None:
    broker = Side("broker", "b")
    broker.exchange.dial("good:1", "n")
    broker.exchange.dial("good:1")
    broker.exchange.undial("good:1", "n")
    broker.tick(0.0)
    assert "good:1" in broker.wire.dialled
    broker.exchange.dial("hint:1", "n")
    broker.exchange.undial("hint:1", "m")
    broker.exchange.undial("hint:1", "n")
    broker.tick(1.0)
    assert "hint:1" not in broker.wire.dialled


def test_when_both_dial_both_keep_the_same_connection() -> None:
    broker, node = Side("broker", "b"), Side("node", "n")
    broker.exchange.dial("node:1", "n")
    node.exchange.dial("broker:1", "b")
    for side in (broker, node):
        side.tick(0.0)
        side.hear(Up(1))
    carry(broker, node, 1, b"from broker")  # the two cross
    carry(node, broker, 1, b"from node")
    carry(node, broker, b"from broker", 1)
    carry(broker, node, b"from node", 1)
    answer(broker, node, 1, b"from broker")
    assert [type(event) for event in broker.events] == [Joined]
    assert [type(event) for event in node.events] == [Joined]
    assert broker.exchange.links["n"].route == 1
    assert node.exchange.links["b"].route == b"from broker"
