"""What was said right before the end of a connection arrives, however late it is read."""

from __future__ import annotations

import time
from contextlib import closing

import pytest

from dispy.protocol import secret
from dispy.protocol.arrivals import Arrival, Arrived, Down, HungUp, Route, Up
from dispy.protocol.keys import Keys
from dispy.protocol.transport import Bus

KEYS = secret.read("a long secret text").keys
PATIENCE_S = 20.0
LATE_S = 0.1  # both sides' threads of ZeroMQ know of the end by then


def connect(dialler: Bus, listener: Bus) -> tuple[Route, Route]:
    """Connect two; return the routes of both."""
    there = dialler.dial(listener.listen("127.0.0.1:0"))
    deadline = time.monotonic() + PATIENCE_S
    back: Route | None = None
    while back is None:
        assert time.monotonic() < deadline
        for arrival in dialler.poll(0.005):
            if isinstance(arrival, Up):
                dialler.send(there, [b"hello"])
        for arrival in listener.poll(0.005):
            if isinstance(arrival, Arrived):
                back = arrival.route
    return there, back


def until_the_end(bus: Bus) -> list[Arrival]:
    found: list[Arrival] = []
    deadline = time.monotonic() + PATIENCE_S
    while not any(isinstance(arrival, Down | HungUp) for arrival in found):
        assert time.monotonic() < deadline, found
        found += bus.poll(0.05)
    return found + bus.poll(0.05)


@pytest.mark.parametrize("keys", [None, KEYS], ids=["open", "encrypted"])
@pytest.mark.parametrize("dials", [True, False], ids=["reader dials", "reader listens"])
def test_a_goodbye_before_the_end_arrives_when_it_is_read_late(
    keys: Keys | None, dials: bool
) -> None:
    with closing(Bus(keys)) as reader, closing(Bus(keys)) as leaver:
        if dials:
            _, back = connect(reader, leaver)
        else:
            back, _ = connect(leaver, reader)
        leaver.send(back, [b"a result"])
        leaver.send(back, [b"goodbye"])
        begin = time.monotonic()
        leaver.close()
        assert time.monotonic() - begin < 2.0
        time.sleep(LATE_S)  # being late is what is tested
        said = [bytes(each.frames[0]) for each in until_the_end(reader) if type(each) is Arrived]
    assert said == [b"a result", b"goodbye"]
