"""An address that stands for several hosts: all are tried at once, by real sockets on loopback."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

from dispy.protocol import lookup, secret
from dispy.protocol.arrivals import Arrival, Arrived, Down, Up
from dispy.protocol.events import Joined
from dispy.protocol.exchange import Exchange
from dispy.protocol.identity import describe, random_name
from dispy.protocol.lookup import Lookups, hosts_of
from dispy.protocol.transport import Bus

KEYS, OTHERS = (secret.read(text).keys for text in ("a long secret text", "another secret text"))
PATIENCE_S = 20.0


def heard(*buses: Bus, enough: Callable[[list[Arrival]], object]) -> list[Arrival]:
    """Return what has arrived at the first bus when there is enough of it."""
    found: list[Arrival] = []
    deadline = time.monotonic() + PATIENCE_S
    while not enough(found):
        assert time.monotonic() < deadline, found
        for bus in buses[1:]:
            bus.poll(0.005)
        found += buses[0].poll(0.005)
    return found


@contextmanager
def silent(host: str) -> Iterator[int]:
    """Listen, but never say anything; give the port."""
    with closing(socket.create_server((host, 0))) as door:
        yield door.getsockname()[1]


def test_the_one_that_works_is_kept_though_the_first_is_dead() -> None:
    with closing(Bus()) as listener, closing(Bus()) as dialler:
        port = listener.listen("127.0.0.3:0").rpartition(":")[2]
        route = dialler.dial(f"[127.0.0.1,::1,127.0.0.3]:{port}")
        found = heard(dialler, listener, enough=len)
        assert found == [Up(route, address=f"127.0.0.3:{port}")]
        assert dialler.send(route, [b"hello"])
        said = heard(listener, dialler, enough=lambda all_: any(type(a) is Arrived for a in all_))
        back = next(each.route for each in said if isinstance(each, Arrived))
        listener.send(back, [b"you too"])
        found = heard(dialler, listener, enough=len)
        assert [(each.route, bytes(each.frames[0])) for each in found if type(each) is Arrived] == [
            (route, b"you too")
        ]
        listener.close()
        end = heard(dialler, enough=len)[0]
        assert isinstance(end, Down) and end.route == route  # told by the same number


def test_who_takes_a_connection_but_never_answers_holds_up_nobody() -> None:
    with closing(Bus(KEYS)) as listener, closing(Bus(KEYS)) as dialler, silent("127.0.0.2") as port:
        listener.listen(f"127.0.0.3:{port}")
        begin = time.monotonic()
        dialler.dial(f"127.0.0.2,127.0.0.3:{port}")
        found = heard(dialler, listener, enough=len)
        assert isinstance(found[0], Up) and found[0].address == f"127.0.0.3:{port}"
        assert time.monotonic() - begin < 3.0


def test_the_failure_says_how_each_has_failed() -> None:
    with closing(Bus(OTHERS)) as listener, closing(Bus(KEYS)) as dialler:
        port = listener.listen("127.0.0.3:0").rpartition(":")[2]
        route = dialler.dial(f"127.0.0.1,127.0.0.3:{port}")
        (down,) = heard(dialler, listener, enough=len)
    assert isinstance(down, Down) and down.route == route
    assert "127.0.0.1: connection refused: nothing listens there; " in down.reason
    assert "127.0.0.3: the secrets differ" in down.reason
    assert down.denied and not down.refused  # there may be somebody


def test_who_listens_nowhere_is_proven_gone() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as door:
        port = door.getsockname()[1]
    with closing(Bus()) as dialler:
        dialler.dial(f"127.0.0.1,127.0.0.2:{port}")
        (down,) = heard(dialler, enough=len)
    assert isinstance(down, Down) and down.refused


def test_a_dropped_choice_leaves_nothing_behind() -> None:
    with closing(Bus()) as dialler, silent("127.0.0.2") as port:
        dialler.drop(dialler.dial(f"127.0.0.2,127.0.0.3:{port}"))
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            assert dialler.poll(0.05) == []


def test_a_name_is_looked_up_and_one_that_nobody_knows_is_said_so() -> None:
    with closing(Bus()) as listener, closing(Bus()) as dialler:
        address = listener.listen("127.0.0.1:0")
        port = address.rpartition(":")[2]
        route = dialler.dial(f"localhost:{port}")
        assert heard(dialler, listener, enough=len) == [Up(route, address=address)]
        dialler.dial(f"no-such-host.invalid:{port}")
        (down,) = heard(dialler, enough=len)
    assert isinstance(down, Down)
    assert down.reason == "the host 'no-such-host.invalid' can't be found"


def test_a_session_says_by_which_address_it_was_reached() -> None:
    with closing(Bus()) as listener, closing(Bus()) as dialler:
        address = listener.listen("127.0.0.3:0")
        several = "127.0.0.2," + address
        ends = [Exchange(describe("node", "1"), listener, random_name)]
        ends.append(Exchange(describe("broker", "1"), dialler, random_name))
        ends[1].dial(several)
        joined: list[Joined] = []
        deadline = time.monotonic() + PATIENCE_S
        while not joined:
            assert time.monotonic() < deadline
            for end, bus in zip(ends, (listener, dialler), strict=True):
                end.flush(time.monotonic())
                events = end.tick(time.monotonic())
                for arrival in bus.poll(0.005):
                    events += end.receive(arrival, time.monotonic())
                if bus is dialler:
                    joined += [event for event in events if isinstance(event, Joined)]
        assert (joined[0].address, joined[0].reached) == (several, address)


def test_hosts_of_addresses() -> None:
    assert hosts_of("10.0.0.1:80") == ["10.0.0.1"]
    assert hosts_of("[fd00::1]:80") == ["fd00::1"]
    assert hosts_of("[10.0.0.1,fd00::1]:80") == ["10.0.0.1", "fd00::1"]
    assert hosts_of("a-name:80") == hosts_of("10.0.0.1,a-name:80") == []


def test_only_so_many_names_are_looked_up_at_a_time() -> None:
    lookups = Lookups(lambda: None)
    lookups._busy.update(str(number) for number in range(lookup.LOOKUPS_MAX))
    lookups.begin("localhost")
    assert [found.error for found in lookups.take()] == ["too many names are being looked up"]
