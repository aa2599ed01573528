"""Peers with a session say anything that their types allow, to the real cores and their shells.

Each is dismissed at most. Nothing raises out of a turn, all invariants hold, and when the peers are
gone, so is what they left; an honest client and an honest node go on as if nothing had been.
``DISPY_FUZZ`` says how many messages, by default 6,000. What goes wrong is found again by its
seed, which is printed: ``DISPY_TEST_SEED``.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispy.broker.clients import SESSION_S
from dispy.broker.daemon import PAUSE_S
from dispy.protocol import beacon
from dispy.protocol import messages as m
from dispy.protocol.seeking import Face, Seeking
from dispy.protocol.wire import Codec

from .babble import Babbler
from .nodeunderfire import NodeUnderFire
from .relayunderfire import CHILDREN, RelayUnderFire
from .underfire import BrokerUnderFire

COUNT = int(os.environ.get("DISPY_FUZZ", "6000"))
FIRST_SEED = int(os.environ.get("DISPY_TEST_SEED", "0"))
STEPS = 400  # with one seed
LIES = (0.0, 0.02, 0.1, 0.3)
CHECK_STEPS = 9
KINDS = {"private": (False, False), "shared": (False, True), "durable": (True, True)}
LEASE_S = 6000.0  # longer than any of a node


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """What daemons say of it isn't for our log."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def seeds(share: int) -> range:
    return range(FIRST_SEED, FIRST_SEED + max(1, COUNT // share // STEPS))


@pytest.mark.parametrize("kind", KINDS)
def test_brokers(kind: str, tmp_path: Path) -> None:
    for seed in seeds(4):
        print("DISPY_TEST_SEED", seed)
        folder = tmp_path / str(seed)
        folder.mkdir()
        fire = BrokerUnderFire(seed, LIES[seed % len(LIES)], folder, *KINDS[kind])
        for step in range(STEPS):
            fire.step()
            if step % CHECK_STEPS == 0:
                fire.daemon.scheduler.check()
        goes_on(fire)
        fire.daemon.close(goodbye=False)


def goes_on(fire: BrokerUnderFire) -> None:
    """The liars leave; an honest job is run; nothing but that is left."""
    fire.babbler.lies = 0.0
    fire.dismiss()
    scheduler = fire.daemon.scheduler
    for _ in range(int(LEASE_S / PAUSE_S)):
        fire.now += 0.9 * PAUSE_S
        fire.turn([])
    scheduler.check()
    assert not scheduler.nodes
    assert all(cluster.meta.expired for cluster in scheduler.clusters.values())
    assert len(scheduler.state.pasts) < STEPS and len(fire.daemon.exchange.links) == 0
    assert fire.run_a_job()


def test_nodes(tmp_path: Path) -> None:
    for seed in seeds(4):
        print("DISPY_TEST_SEED", seed)
        fire = NodeUnderFire(seed, LIES[seed % len(LIES)], tmp_path / str(seed))
        for step in range(STEPS):
            fire.step()
            if step % CHECK_STEPS == 0:
                fire.daemon.agent.check()
        fire.daemon.agent.check()
        assert len(fire.daemon.exchange.links) <= len(fire.liars) + 1


def test_relays() -> None:
    for seed in seeds(2):
        print("DISPY_TEST_SEED", seed)
        fire = RelayUnderFire(seed, LIES[seed % len(LIES)])
        for step in range(STEPS):
            fire.step()
            if step % CHECK_STEPS == 0:
                fire.relay.check()
        fire.relay.check()
        assert fire.relay.children <= CHILDREN + 1
        fire.relay.stop()


# -- datagrams ------------------------------------------------------------------------------

KEY = bytes(32)
FRIEND = beacon.Beacon(beacon.SEEK, "node", "n" * 32, bytes(16), ("127.0.0.1:9701",))


def test_datagrams() -> None:
    """Of strangers and of friends that make no sense: no answer is longer than its question."""
    chance = random.Random(FIRST_SEED)
    me = Face("broker", "b" * 32, ("127.0.0.1:9700",), frozenset({"node"}), frozenset({"node"}))
    seeking = Seeking(me, KEY, lambda: chance.randbytes(16), lambda instance: False)
    good = [beacon.encode(FRIEND._replace(kind=kind), KEY) for kind in beacon.KINDS]
    for number in range(COUNT):
        data = bytearray(chance.choice(good))
        for _ in range(chance.randint(0, 3)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        data = data[: chance.choice((len(data), len(data), chance.randrange(len(data) + 1)))]
        if chance.random() < 0.5:  # by somebody who knows the secret
            body = data[: -beacon.MAC_BYTES]
            data = body + beacon._mac(body, KEY)
        for effect in seeking.heard(bytes(data), f"127.0.0.{number % 9}", number * 1e-3):
            assert len(getattr(effect, "datagram", b"")) <= len(data)
        seeking.tick(number * 1e-3)


def test_what_is_made_up_gets_through_the_encoding() -> None:
    """Else nothing is tested: most of what liars say must be readable."""
    codec, babbler = Codec(), Babbler(random.Random(1), lies=0.3)
    began = time.monotonic()
    for _ in range(50):
        for kind in (m.OpenCluster, m.Submit, m.Done, m.Holding):
            header, _ = codec.encode(m.Envelope(1, 1, 0, [babbler.message(kind)]))
            codec.decode(header)
    assert time.monotonic() - began < SESSION_S
