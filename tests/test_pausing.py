"""A bus that takes in nothing for a while but what comes over one connection, as in a relay."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from dispy.protocol.arrivals import Arrived, Route, Up
from dispy.protocol.messages import Buffer
from dispy.protocol.sockets import HIGH_WATER
from dispy.protocol.transport import Bus

DEADLINE_S = 10.0
AHEAD = 4


class Doors:
    """A bus with two doors, and a peer at each."""

    def __init__(self) -> None:
        self.bus = Bus(ahead=AHEAD)
        self.peers = [Bus(), Bus()]
        addresses = self.bus.listen("127.0.0.1:0"), self.bus.listen("127.0.0.1:0", apart=True)
        self.sides = [
            peer.dial(address) for peer, address in zip(self.peers, addresses, strict=True)
        ]
        for peer in self.peers:
            self.wait(lambda peer=peer: any(isinstance(each, Up) for each in peer.poll(0.01)))
        self.routes: list[Route] = []
        self.got: list[tuple[Route, Buffer]] = []
        for number in (0, 1):
            self.say(number, b"hello")
            self.wait(lambda number=number: len(self.take()) > number)
            self.routes.append(self.got[-1][0])

    def say(self, number: int, text: bytes) -> bool:
        return self.peers[number].send(self.sides[number], [text])

    def take(self) -> list[tuple[Route, Buffer]]:
        for each in self.bus.poll(0.01):
            if isinstance(each, Arrived):
                self.got.append((each.route, each.frames[0]))
        return self.got

    @staticmethod
    def wait(condition: object) -> None:
        end = time.monotonic() + DEADLINE_S
        assert callable(condition)
        while not condition():
            assert time.monotonic() < end, "waited in vain"


@pytest.fixture
def doors() -> Iterator[Doors]:
    made = Doors()
    yield made
    for bus in (made.bus, *made.peers):
        bus.close()


def test_routes_of_doors_apart_are_different(doors: Doors) -> None:
    assert len(set(doors.routes)) == 2
    for number, route in enumerate(doors.routes):
        assert doors.bus.send(route, [b"back"])
        peer = doors.peers[number]
        doors.wait(lambda peer=peer: any(isinstance(each, Arrived) for each in peer.poll(0.01)))


@pytest.mark.parametrize("kept", [0, 1])
def test_only_one_connection_is_heard_until_the_bus_goes_on(doors: Doors, kept: int) -> None:
    doors.bus.pause(doors.routes[kept])
    doors.got.clear()
    for text in (b"1", b"2", b"3"):
        doors.say(1 - kept, text)
        doors.say(kept, text)
    doors.wait(lambda: len(doors.take()) >= 3)
    for _ in range(20):
        doors.take()
    assert [(route, text) for route, text in doors.got] == [
        (doors.routes[kept], text) for text in (b"1", b"2", b"3")
    ]
    doors.bus.resume()
    doors.wait(lambda: len(doors.take()) >= 6)
    assert [text for _, text in doors.got[3:]] == [b"1", b"2", b"3"]
    assert {route for route, _ in doors.got[3:]} == {doors.routes[1 - kept]}


def test_a_paused_bus_waits_without_work(doors: Doors) -> None:
    doors.bus.pause(doors.routes[1])
    doors.say(0, b"later")
    for _ in range(20):
        doors.take()
    begin = time.process_time()
    doors.bus.poll(0.5)
    assert time.process_time() - begin < 0.1


def test_what_is_not_taken_in_holds_its_sender_up(doors: Doors) -> None:
    """A few messages are read ahead, and then the connection fills up."""
    doors.bus.pause(doors.routes[1])
    payload = bytes(1 << 16)
    sent, last = 0, time.monotonic()
    while time.monotonic() < last + 0.5:
        doors.bus.poll(0.0)
        if doors.say(0, payload):
            sent, last = sent + 1, time.monotonic()
    assert sent < HIGH_WATER + 500  # what its own socket holds, and what lies in the connection
    doors.bus.resume()
