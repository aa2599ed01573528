"""When processes seek each other, whom they answer, and how long they follow what was found."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from dispy.protocol.beacon import HERE, Beacon, decode, encode
from dispy.protocol.discovery import askable, is_near, suitable, target
from dispy.protocol.interfaces import InterfaceAddress
from dispy.protocol.seeking import (
    WAYS_MAX,
    Ask,
    Busy,
    Drop,
    Effect,
    Face,
    Failed,
    Follow,
    Reply,
    Seeking,
    Stance,
    places,
)

KEY = b"k" * 32
BROKERS = frozenset({"broker", "relay"})
NODES = frozenset({"node", "relay"})
_nonces = itertools.count(1)


def new_nonce() -> bytes:
    return next(_nonces).to_bytes(16, "big")


def broker(
    interval_s: float = 0.0, known: Iterable[str] = (), key: bytes = KEY, name: str = "b"
) -> Seeking:
    face = Face("broker", name, ("10.0.0.1:9700",), NODES, NODES)
    return Seeking(face, key, new_nonce, set(known).__contains__, interval_s)


def node(known: Iterable[str] = (), key: bytes = KEY, name: str = "n") -> Seeking:
    face = Face("node", name, ("10.0.0.5:9701", "10.9.0.5:9701"), BROKERS, BROKERS)
    return Seeking(face, key, new_nonce, set(known).__contains__)


def question(seeker: Seeking, now: float) -> bytes:
    seeker.seek(now)
    (ask,) = seeker.tick(now)
    assert isinstance(ask, Ask)
    return ask.datagram


def reply(effects: list[Effect]) -> bytes:
    (effect,) = effects
    assert isinstance(effect, Reply)
    return effect.datagram


def asked_at(seeker: Seeking, until: float) -> list[float]:
    times, now = [], 0.0
    while (now := max(now, seeker.deadline())) <= until:
        if any(isinstance(effect, Ask) for effect in seeker.tick(now)):
            times.append(now)
    return times


# -- seeking ---------------------------------------------------------------------------------


def test_it_asks_some_times_and_then_no_more() -> None:
    seeker = broker()
    assert seeker.deadline() == float("inf")
    seeker.seek(10.0)
    assert asked_at(seeker, 1000.0) == [10.0, 11.0, 13.0]
    assert not seeker.is_seeking


def test_or_at_an_interval() -> None:
    seeker = broker(interval_s=60.0)
    seeker.seek(0.0)
    assert asked_at(seeker, 130.0) == [0.0, 1.0, 3.0, 63.0, 123.0]
    seeker.rest()
    assert asked_at(seeker, 1000.0) == []


def test_who_was_late_asks_once() -> None:
    seeker = broker()
    seeker.seek(0.0)
    assert len(seeker.tick(100.0)) == 1
    assert not seeker.is_seeking


# -- finding ---------------------------------------------------------------------------------


def test_what_answers_is_dialled_at_all_its_addresses() -> None:
    seeker = broker()
    here = reply(node().heard(question(seeker, 0.0), "10.0.0.1", 0.0))
    assert seeker.heard(here, "10.8.0.5", 0.1) == [
        Follow("10.0.0.5:9701", "n"),
        Follow("10.9.0.5:9701", "n"),
        Follow("10.8.0.5:9701", "n"),
    ]
    assert seeker.heard(here, "10.8.0.5", 0.2) == []


def test_an_answer_to_nobody_s_question_is_nothing() -> None:
    seeker, other = broker(), broker(name="b2")
    here = reply(node().heard(question(other, 0.0), "10.0.0.2", 0.0))
    question(seeker, 0.0)
    assert seeker.heard(here, "10.0.0.5", 0.1) == []


def test_a_late_answer_is_somebody_s_recording() -> None:
    seeker = broker()
    here = reply(node().heard(question(seeker, 0.0), "10.0.0.1", 0.0))
    assert seeker.heard(here, "10.0.0.5", 6.0) == []


def test_roles_that_are_not_sought_do_not_count() -> None:
    seeker, other = broker(), broker(name="b2")
    asked = decode(question(seeker, 0.0), KEY)
    assert asked is not None
    assert other.heard(question(seeker, 0.0), "10.0.0.1", 0.0) == []
    here = encode(Beacon(HERE, "broker", "b2", asked.nonce, ("10.0.0.2:9700",)), KEY)
    assert seeker.heard(here, "10.0.0.2", 0.1) == []


def test_what_leads_nowhere_is_forgotten_and_said_with_reasons() -> None:
    seeker = broker()
    here = reply(node().heard(question(seeker, 0.0), "10.0.0.1", 0.0))
    seeker.heard(here, "10.0.0.5", 0.0)
    assert seeker.failed("10.0.0.5:9701", "refused")
    assert not seeker.failed("10.0.0.6:9701", "refused")
    seeker.rest()
    assert seeker.deadline() == 10.0
    *dropped, failed = seeker.tick(10.0)
    assert dropped == [Drop("10.0.0.5:9701", "n"), Drop("10.9.0.5:9701", "n")]
    assert failed == Failed("n", "10.0.0.5:9701: refused; 10.9.0.5:9701: no answer")
    assert seeker.found == []


def test_it_is_kept_while_the_peer_is_registered() -> None:
    known: set[str] = set()
    face = Face("broker", "b", ("10.0.0.1:9700",), NODES, NODES)
    seeker = Seeking(face, KEY, new_nonce, known.__contains__)
    here = reply(node().heard(question(seeker, 0.0), "10.0.0.1", 0.0))
    seeker.heard(here, "10.0.0.5", 0.0)
    known.add("n")
    seeker.rest()
    assert seeker.tick(10.0) == []
    assert seeker.found == ["n"]
    known.clear()
    assert Drop("10.0.0.5:9701", "n") in seeker.tick(20.0)


def test_a_peer_that_has_left_is_forgotten_at_once() -> None:
    seeker = broker()
    here = reply(node().heard(question(seeker, 0.0), "10.0.0.1", 0.0))
    seeker.heard(here, "10.0.0.5", 0.0)
    assert seeker.keep_only(["n"]) == []
    assert len(seeker.left("n")) == 2
    assert seeker.left("n") == []


def test_an_address_belongs_to_who_was_found_there_last() -> None:
    seeker = broker()
    asked = question(seeker, 0.0)
    seeker.heard(reply(node().heard(asked, "10.0.0.1", 0.0)), "10.0.0.5", 0.0)
    anew = node(name="anew")
    effects = seeker.heard(reply(anew.heard(asked, "10.0.0.1", 0.0)), "10.0.0.5", 0.1)
    assert effects[:2] == [Drop("10.0.0.5:9701", "n"), Follow("10.0.0.5:9701", "anew")]
    assert seeker.left("n") == []
    assert len(seeker.left("anew")) == 2


def test_the_source_of_an_answer_takes_no_address_from_who_is_known_there() -> None:
    known: set[str] = set()
    face = Face("broker", "b", ("10.0.0.1:9700",), NODES, NODES)
    seeker = Seeking(face, KEY, new_nonce, known.__contains__)
    asked = question(seeker, 0.0)
    seeker.heard(reply(node().heard(asked, "10.0.0.1", 0.0)), "10.0.0.5", 0.0)
    known.add("n")
    face = Face("node", "m", ("10.0.0.6:9701",), BROKERS, BROKERS)
    other = Seeking(face, KEY, new_nonce, set[str]().__contains__)
    here = reply(other.heard(asked, "10.0.0.1", 0.0))
    assert seeker.heard(here, "10.0.0.5", 0.1) == [Follow("10.0.0.6:9701", "m")]


def test_loopback_means_the_same_machine_only_there() -> None:
    here = Beacon(HERE, "node", "n", bytes(16), ("127.0.0.1:9701", "10.0.0.5:9701"))
    assert places(here, "10.0.0.5") == ["10.0.0.5:9701"]
    assert places(here, "127.0.0.1") == ["127.0.0.1:9701", "10.0.0.5:9701"]
    assert places(here, "fe80::5%eth0")[-1] == "[fe80::5%eth0]:9701"


# -- being found -------------------------------------------------------------------------------


def test_another_secret_is_not_answered() -> None:
    stranger = broker(key=b"o" * 32)
    found = node()
    assert found.heard(question(stranger, 0.0), "10.0.0.1", 0.0) == []
    assert found.strangers == 1


def test_nobody_hears_itself() -> None:
    one = broker()
    assert one.heard(question(one, 0.0), "10.0.0.1", 0.0) == []


def test_who_works_for_another_says_so() -> None:
    seeker, found = broker(), node()
    found.stance = Stance.BUSY
    here = reply(found.heard(question(seeker, 0.0), "10.0.0.1", 0.0))
    assert seeker.heard(here, "10.0.0.5", 0.0) == [Busy("n", "10.0.0.5")]
    found.stance = Stance.SILENT
    assert found.heard(question(seeker, 1.0), "10.0.0.1", 1.0) == []


def test_a_question_is_answered_once_for_each_way_on_which_it_comes() -> None:
    found = node()
    asked = question(broker(), 0.0)
    assert len(found.heard(asked, "10.0.0.1", 0.0)) == 1
    assert found.heard(asked, "10.0.0.1", 0.1) == []
    assert len(found.heard(asked, "fe80::1%eth0", 0.1)) == 1


def test_a_recorded_question_is_not_answered() -> None:
    found = node()
    asked = question(broker(), 0.0)
    assert len(found.heard(asked, "10.0.0.1", 0.0)) == 1
    assert found.heard(asked, "10.0.0.66", 2.5) == []


def test_nor_many_who_say_that_they_have_asked_it() -> None:
    found = node()
    asked = question(broker(), 0.0)
    answers = [found.heard(asked, f"10.0.1.{last}", last / 100) for last in range(200)]
    assert sum(map(len, answers)) == WAYS_MAX


def test_answers_to_one_source_are_limited() -> None:
    found, seeker = node(), broker()
    heard = [found.heard(question(seeker, 0.0), "10.0.0.1", 0.5) for _ in range(50)]
    assert sum(map(len, heard)) == 10
    assert len(found.heard(question(seeker, 0.0), "10.0.0.1", 1.5)) == 1


def test_and_those_to_all() -> None:
    found, seeker = node(), broker()
    heard = [found.heard(question(seeker, 0), f"10.0.{i}.1", 0.5) for i in range(250)]
    assert sum(map(len, heard)) == 100


def test_who_is_sought_but_not_dialled_tries_it_the_other_way_round() -> None:
    found, seeker = node(), broker()
    found.heard(question(seeker, 0.0), "10.0.0.1", 0.0)
    assert found.tick(1.9) == []
    assert found.deadline() == 2.0
    assert isinstance(found.tick(2.0)[0], Ask)
    found.rest()
    assert found.tick(3.0) == []


def test_but_not_who_was_dialled_or_has_work_by_then() -> None:
    dialled, busy = node(known=["b"]), node()
    for found in (dialled, busy):
        found.heard(question(broker(), 0.0), "10.0.0.1", 0.0)
    busy.stance = Stance.BUSY
    assert dialled.tick(2.0) == busy.tick(2.0) == []


@given(st.lists(st.tuples(st.binary(max_size=520), st.floats(0, 100)), max_size=20))
def test_noise_changes_nothing(noise: list[tuple[bytes, float]]) -> None:
    found = node()
    assert [found.heard(each, "10.0.0.1", now) for each, now in noise] == [[]] * len(noise)
    assert found.deadline() == float("inf")


@given(st.data())
def test_changed_and_repeated_datagrams_lead_nowhere(data: st.DataObject) -> None:
    seeker, found = broker(), node()
    asked = question(seeker, 0.0)
    here = reply(found.heard(asked, "10.0.0.1", 0.0))
    for datagram, whom in ((asked, found), (here, seeker)):
        changed = bytearray(datagram)
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
        assert whom.heard(bytes(changed), "10.0.0.66", 0.1) == []
        again = data.draw(st.floats(5.1, 1e6))
        assert whom.heard(datagram, "10.0.0.66", again) == []


# -- interfaces ----------------------------------------------------------------------------------

LO = InterfaceAddress("lo", "127.0.0.1", 8, index=1, is_loopback=True)
ETH = InterfaceAddress("eth0", "10.0.0.5", 24, "10.0.0.255", 2, can_multicast=True)
ETH6 = InterfaceAddress("eth0", "fd00::5", 64, index=2, can_multicast=True)
LOCAL6 = InterfaceAddress("eth0", "fe80::5", 64, index=2, can_multicast=True)
ETH1 = InterfaceAddress("eth1", "10.1.0.5", 24, "10.1.0.255", 3, can_multicast=True)
VPN = InterfaceAddress("tun0", "10.8.0.5", 32, index=4, is_point_to_point=True, is_virtual=True)
ALL = [ETH, ETH1, ETH6, VPN, LOCAL6, LO]


def test_only_interfaces_that_it_listens_at_are_used() -> None:
    assert suitable(ALL, ["*"]) == ALL
    assert suitable(ALL, ["127.0.0.1"]) == [LO]
    assert suitable(ALL, ["10.1.0.5"]) == [ETH1]
    assert suitable(ALL, ["fd00::5"]) == [ETH6, LOCAL6]
    assert suitable(ALL, ["10.7.7.7"]) == []


def test_each_network_is_asked_once() -> None:
    assert askable(ALL) == [[ETH], [ETH1], [LOCAL6, ETH6], [LO]]
    assert target(ETH, 9701, multicast=False) == ("10.0.0.255", 9701)
    assert target(ETH, 9701, multicast=True) == ("239.97.0.1", 9701)
    assert target(LOCAL6, 9701, multicast=False) == ("ff02::9700", 9701, 0, 2)
    assert target(LO, 9701, multicast=True) == ("127.255.255.255", 9701)


def test_only_our_own_networks_are_answered() -> None:
    assert is_near(("10.0.0.77", 5), [ETH])
    assert not is_near(("10.1.0.77", 5), [ETH])
    assert not is_near(("8.8.8.8", 5), [ETH, LO])
    assert is_near(("fe80::77", 5, 0, 2), [LOCAL6])
    assert not is_near(("fe80::77", 5, 0, 3), [LOCAL6])
    assert is_near(("127.0.0.1", 5), [LO])
