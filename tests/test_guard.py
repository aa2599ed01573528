"""Who is believed to be who, by a guard alone and by two exchanges that play it through."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dispy.protocol.arrivals import Arrived, Route, Up
from dispy.protocol.dials import REFUSED_PAUSE_S
from dispy.protocol.events import DialFailed, Event, Joined
from dispy.protocol.exchange import Exchange
from dispy.protocol.guard import CLIENTS, NODES, OPEN, ROLES, Guard, doors, instance_of, prove
from dispy.protocol.keys import Keys
from dispy.protocol.messages import (
    VERSION_MAJOR,
    VERSION_MINOR,
    Buffer,
    Frame,
    Hello,
    Identity,
    Refused,
    Welcome,
)
from dispy.protocol.wire import Codec

KEYS, OTHER_KEYS = Keys(b"the secret"), Keys(b"another")
TOKEN, OTHER_TOKEN = b"t" * 32, b"o" * 32
KEY, OTHER_KEY = b"k" * 40, b"l" * 40
ROLE = st.sampled_from(sorted(ROLES))


def identity(role: str, token: bytes) -> Identity:
    return Identity(role, instance_of(token), role, "0", "3", "Linux")


def hello(
    role: str = "node", token: bytes = TOKEN, keys: Keys | None = KEYS, key: bytes = KEY
) -> Hello:
    me = identity(role, token)
    proofs = Guard(token, keys).present(role, me.instance, key)
    return Hello(VERSION_MAJOR, VERSION_MINOR, me, "", 0, *proofs)


def guard(keys: Keys | None = KEYS) -> Guard:
    return Guard(b"ours", keys)


# -- a guard alone --------------------------------------------------------------------------------


@given(ROLE, st.binary(min_size=1), st.binary(), st.binary(min_size=1))
def test_who_has_the_secret_is_believed(role: str, token: bytes, secret: bytes, key: bytes) -> None:
    keys = Keys(secret)
    assert guard(keys).refuse(hello(role, token, keys, key), key, 0) == ""


@given(st.integers(0, 31), st.integers(1, 255))
def test_no_byte_of_a_proof_can_be_changed(at: int, by: int) -> None:
    said = hello()
    changed = bytearray(said.proof)
    changed[at] ^= by
    said.proof = bytes(changed)
    assert "doesn't prove" in guard().refuse(said, KEY, 0)


@given(st.integers(0, 31), st.integers(1, 255))
def test_no_byte_of_a_token_can_be_changed(at: int, by: int) -> None:
    said = hello()
    changed = bytearray(said.token)
    changed[at] ^= by
    said.token = bytes(changed)
    assert "another process" in guard().refuse(said, KEY, 0)
    assert "another process" in guard(None).refuse(said, b"", 0)


@given(st.binary(max_size=64))
def test_a_proof_is_worth_nothing_on_another_connection(key: bytes) -> None:
    assert bool(guard().refuse(hello(), key, 0)) == (key != KEY)


@given(ROLE, ROLE)
def test_a_proof_is_for_one_role(role: str, claimed: str) -> None:
    said = hello(role)
    said.identity = msgspec.structs.replace(said.identity, role=claimed)
    assert bool(guard().refuse(said, KEY, 0)) == (role != claimed)


@given(st.binary(min_size=1))
def test_a_proof_is_for_one_instance(token: bytes) -> None:
    said = hello()
    said.identity = identity("node", token)
    assert bool(guard().refuse(said, KEY, 0)) == (token != TOKEN)
    said.token = token  # then it's its own, but not what was signed
    assert bool(guard().refuse(said, KEY, 0)) == (token != TOKEN)


@given(st.binary())
def test_a_proof_is_for_one_secret(secret: bytes) -> None:
    assert bool(guard(Keys(secret)).refuse(hello(), KEY, 0)) == (secret != b"the secret")


@example(b"anode", b"a", "node", "node", "i", "nodei")
@given(*[st.binary(max_size=6)] * 2, *[st.text(max_size=6)] * 4)
def test_what_is_signed_can_t_be_cut_in_another_way(
    key: bytes, other_key: bytes, role: str, other_role: str, instance: str, other: str
) -> None:
    is_same = (key, role, instance) == (other_key, other_role, other)
    one, two = prove(KEYS, role, instance, key), prove(KEYS, other_role, other, other_key)
    assert (one == two) == is_same


def test_without_encryption_no_proof_counts() -> None:
    said = hello(key=b"")
    assert "isn't encrypted" in guard().refuse(said, b"", 0)


def test_each_door_is_for_its_own_roles() -> None:
    two = doors((KEYS, NODES), (OTHER_KEYS, CLIENTS))
    guarding = Guard(b"ours", KEYS, two)
    for role in sorted(NODES):
        assert not guarding.refuse(hello(role), KEY, 0)
        assert guarding.refuse(hello(role), KEY, 1)
        assert "is for a client" in guarding.refuse(hello(role, keys=OTHER_KEYS), KEY, 1)
    assert not guarding.refuse(hello("client", keys=OTHER_KEYS), KEY, 1)
    assert "is for a node or relay" in guarding.refuse(hello("client"), KEY, 0)
    assert guarding.refuse(hello("client", keys=OTHER_KEYS), KEY, 0)
    assert guarding.refuse(hello(), KEY, 2), "a door that there isn't"


def test_also_one_without_a_secret() -> None:
    guarding = Guard(b"ours", KEYS, doors((None, NODES), (KEYS, CLIENTS)))
    assert not guarding.refuse(hello(keys=None), b"", 0)
    assert "is for a node or relay" in guarding.refuse(hello("client", keys=None), b"", 0)


def test_one_secret_for_all_makes_one_door() -> None:
    [door] = doors((KEYS, NODES), (Keys(b"the secret"), CLIENTS))
    assert door.keys == KEYS and door.roles == NODES | CLIENTS
    guarding = Guard(b"ours", KEYS, (door,))
    assert not guarding.refuse(hello("client"), KEY, 0) and not guarding.refuse(hello(), KEY, 0)
    assert guarding.refuse(hello("broker"), KEY, 0)


def test_without_a_secret_roles_are_believed_and_instances_aren_t() -> None:
    assert not guard(None).refuse(hello(keys=None), b"", 0)
    said = hello(keys=None)
    said.token = b""
    assert guard(None).refuse(said, b"", 0)


# -- two exchanges --------------------------------------------------------------------------------


@dataclasses.dataclass
class End:
    """An exchange on a connection that is played by hand."""

    exchange: Exchange
    said: list[list[Buffer]]

    def hear(
        self, frames: list[Buffer], key: bytes, route: Route = b"r", now: float = 0.0
    ) -> list[Event]:
        events = self.exchange.receive(Arrived(route, frames, key), now)
        self.exchange.flush(now)
        return events

    def take(self) -> list[list[Buffer]]:
        taken, self.said[:] = self.said[:], []
        return taken


class Wire:
    def __init__(self, said: list[list[Buffer]]) -> None:
        self.said = said
        self.dialled = 0

    def dial(self, address: str) -> Route:
        self.dialled += 1
        return self.dialled

    def drop(self, route: Route) -> None:
        pass

    def send(self, route: Route, frames: list[Buffer]) -> bool:
        self.said.append(frames)
        return True


def end(role: str, token: bytes, guard: Guard | None = None) -> End:
    said: list[list[Buffer]] = []
    mine = Guard(token, KEYS) if guard is None else guard
    return End(Exchange(identity(role, token), Wire(said), lambda: "s", guard=mine), said)


def greeted(dialler: End, key: bytes = KEY, route: int = 1) -> list[Buffer]:
    """Have it dial, and return its Hello."""
    dialler.exchange.dial("there")
    dialler.exchange.tick(0.0)
    dialler.exchange.receive(Up(route, key), 0.0)
    dialler.exchange.flush(0.0)
    [frames] = dialler.take()
    return frames


def decoded(frames: list[Buffer]) -> Frame:
    return Codec().decode(frames[0])[0]


def encoded(frame: Frame) -> list[Buffer]:
    return [Codec().encode(frame)[0]]


def test_both_sides_believe_each_other() -> None:
    node, broker = end("node", TOKEN), end("broker", b"b")
    [joined] = broker.hear(greeted(node), KEY)
    assert isinstance(joined, Joined)
    [welcome] = broker.take()
    [joined] = node.hear(welcome, b"", 1)
    assert isinstance(joined, Joined) and joined.identity.role == "broker"


def test_a_hello_said_again_on_another_connection_is_refused(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As the broker that heard it might do with another one of the same secret."""
    node, broker = end("node", TOKEN), end("broker", b"b")
    recorded = greeted(node)
    assert broker.hear(recorded, OTHER_KEY, b"q") == []
    refused = decoded(broker.take()[0])
    assert isinstance(refused, Refused) and "doesn't prove" in refused.reason
    assert broker.exchange.links == {}
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    assert "doesn't prove" in caplog.text and "'node'" in caplog.text
    broker.hear(recorded, OTHER_KEY, b"q", 59.0)
    assert len(caplog.records) == 1, "once a minute"
    broker.hear(recorded, OTHER_KEY, b"q", 61.0)
    assert len(caplog.records) == 2


CHANGES: dict[str, dict[str, Any]] = {
    "instance": {"identity": identity("node", OTHER_TOKEN)},
    "token": {"token": OTHER_TOKEN},
    "both": {"identity": identity("node", OTHER_TOKEN), "token": OTHER_TOKEN},
    "proof": {"proof": b""},
    "role": {"identity": identity("client", TOKEN)},
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES)
def test_a_hello_that_was_changed_is_refused(changes: dict[str, Any]) -> None:
    node, broker = end("node", TOKEN), end("broker", b"b")
    said = decoded(greeted(node))
    assert isinstance(said, Hello)
    changed = msgspec.structs.replace(said, **changes)
    assert broker.hear(encoded(changed), KEY) == [] and not broker.exchange.links


def test_nobody_takes_over_a_node_that_is_registered() -> None:
    """Who knows the secret, but not the node's token, can't have its session or end it."""
    node, broker = end("node", TOKEN), end("broker", b"b")
    broker.hear(greeted(node), KEY)
    broker.take()
    before = broker.exchange.links[instance_of(TOKEN)]
    thief = Guard(OTHER_TOKEN, KEYS)
    proofs = thief.present("node", instance_of(TOKEN), OTHER_KEY)
    said = Hello(VERSION_MAJOR, VERSION_MINOR, identity("node", TOKEN), "s", 0, *proofs)
    assert broker.hear(encoded(said), OTHER_KEY, b"q") == []
    [refused] = broker.take()
    assert isinstance(decoded(refused), Refused)
    assert broker.exchange.links[instance_of(TOKEN)] is before and before.route == b"r"


def test_a_broker_that_says_it_is_another_is_not_believed() -> None:
    node = end("node", TOKEN)
    greeted(node)
    welcome = Welcome(VERSION_MINOR, identity("broker", b"b"), "s", 1, 0, OTHER_TOKEN)
    [failed] = node.hear(encoded(welcome), b"", 1)
    assert isinstance(failed, DialFailed) and "another process" in failed.reason
    assert not node.exchange.links
    wire = node.exchange._connections._transport
    assert isinstance(wire, Wire) and wire.dialled == 1
    node.exchange.tick(REFUSED_PAUSE_S - 1.0)
    assert wire.dialled == 1, "not often"
    node.exchange.tick(REFUSED_PAUSE_S + 1.0)
    assert wire.dialled == 2


def test_nothing_is_told_before_a_peer_is_believed() -> None:
    """Neither a name nor a version is said to somebody who hasn't got the secret."""
    broker = end("broker", b"b")
    stranger = end("node", TOKEN, OPEN)
    broker.hear(greeted(stranger), KEY)
    [said] = broker.take()
    refused = decoded(said)
    assert isinstance(refused, Refused) and broker.exchange.identity.instance not in str(refused)


def test_whoever_asks_no_questions_is_only_for_instances_made_by_hand() -> None:
    broker = end("broker", b"b", OPEN)
    assert broker.hear(greeted(end("node", TOKEN, OPEN)), b"")
