"""Peers say anything that their types allow, or what is spoilt on its way, to the real cores.

With a session, and over connections of nobody's: messages that make no sense, mutated headers,
frames that are missing or too many; and datagrams of strangers and of friends. Each peer is
dismissed at most. Nothing raises out of a turn of the real shells, all invariants hold, honest
peers beside them go on with their sessions, and an honest job is run.

Nothing grows: a core lives through many storms. After each of them all leave, and what it holds is
measured. In the second half of its life it may hold no more than in the first, but for
`GROWTH_MAX_BYTES`: see there.

``DISPY_FUZZ`` says how many steps for each role, by default 1,500; a step is about one message of
each kind. What goes wrong is found again by its seed, which is printed: ``DISPY_TEST_SEED``.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dispy.broker import daemon as broker_shell
from dispy.broker import mishaps, nodes
from dispy.broker.clients import SESSION_S
from dispy.broker.daemon import PAUSE_S
from dispy.node import daemon as node_shell
from dispy.protocol import beacon, seeking
from dispy.protocol import messages as m
from dispy.protocol.seeking import Ask, Face, Seeking
from dispy.protocol.wire import Codec
from dispy.relay import daemon as relay_shell

from .babble import Babbler, spoilt
from .holdings import held
from .liars import Clock
from .nodeunderfire import NodeUnderFire
from .relayunderfire import CHILDREN, RelayUnderFire
from .underfire import BrokerUnderFire

COUNT = int(os.environ.get("DISPY_FUZZ", "1500"))
pytestmark = pytest.mark.timeout(120 + COUNT / 100)
FIRST_SEED = int(os.environ.get("DISPY_TEST_SEED", "0"))
STEPS = 150  # of a storm
STORMS_MIN = 4  # in the life of a core
STORMS_MAX = 500  # so that what goes wrong can be found
LIES = (0.0, 0.02, 0.1, 0.3)
SPOILS = (0.05, 0.2, 0.01)
CHECK_STEPS = 9
KINDS = {"private": (False, False), "shared": (False, True), "durable": (True, True)}
UNNEEDED = "no cluster needs it any more"  # why a private broker sends honest nodes away
LEASE_S = 1500.0  # longer than any lease, with these pulses, and than `RETAIN_S`
PULSE_MAX_S = 200.0
PASTS_MAX = 20  # places that a broker remembers: so few that this is reached
# Less than one byte for each message that is spoilt in a life of the full length. It is for what
# a storm may leave that the next one drops: at a broker, who broke the protocol in the last
# minute (200 at most), nodes that had room (`FREED_MAX` for each), old places in line (16 for each
# user); at the others a few strings.
GROWTH_MAX_BYTES = {"broker": 70_000, "node": 5_000, "relay": 2_000}


@pytest.fixture(autouse=True)
def silence() -> Iterator[None]:
    """What daemons say of it isn't for our log."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def lives(count: int) -> Iterator[tuple[int, int]]:
    """Share so many steps among cores; yield the seed of each, and its number of storms."""
    storms = max(STORMS_MIN, count // STEPS)
    seed = FIRST_SEED
    while storms > 0:
        print("DISPY_TEST_SEED", seed)
        yield seed, max(STORMS_MIN, min(STORMS_MAX, storms))
        storms -= STORMS_MAX
        seed += 1


def live(
    babbler: Babbler, storms: int, step: Callable[[], None], check: Callable[[], None],
    end: Callable[[], Counter[str]],
) -> list[Counter[str]]:  # fmt: skip
    """Have a core live through storms. ``end`` has peace made; return what it said is left then."""
    left: list[Counter[str]] = []
    for storm in range(storms):
        babbler.lies, babbler.spoils = LIES[storm % len(LIES)], SPOILS[storm % len(SPOILS)]
        for number in range(STEPS):
            step()
            if number % CHECK_STEPS == 0:
                check()
        check()
        babbler.lies = babbler.spoils = 0.0
        left.append(end())
    print("messages that were spoilt:", babbler.spoilt)
    assert babbler.spoilt > storms * STEPS / 2
    return left


def expect_no_growth(left: list[Counter[str]], max_bytes: int) -> None:
    """The first storm is for what is only loaded when it is needed."""
    middle = (len(left) + 1) // 2
    first, second = (max(part, key=Counter.total) for part in (left[1:middle], left[middle:]))
    print("held after storms:", [each.total() for each in left[:: max(1, len(left) // 20)]])
    growth = second.total() - first.total()
    assert growth <= max_bytes, (second - first).most_common(9)


@pytest.mark.parametrize("kind", KINDS)
def test_brokers(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mishaps, "PASTS_MAX", PASTS_MAX)
    monkeypatch.setattr(nodes, "PULSE_MAX_S", PULSE_MAX_S)
    for seed, storms in lives(COUNT // len(KINDS)):
        folder = tmp_path / str(seed)
        folder.mkdir()
        clock = Clock()
        monkeypatch.setattr(broker_shell, "time", clock)
        fire = BrokerUnderFire(seed, folder, clock, *KINDS[kind])

        def end(fire: BrokerUnderFire = fire, clock: Clock = clock) -> Counter[str]:
            goes_on(fire, clock)
            left = held(fire.daemon, fire.wire)
            fire.enter_all()
            return left

        def check(fire: BrokerUnderFire = fire) -> None:
            fire.daemon.scheduler.check()

        left = live(fire.babbler, storms, fire.step, check, end)
        expect_no_growth(left, GROWTH_MAX_BYTES["broker"])
        fire.daemon.close(goodbye=False)


def goes_on(fire: BrokerUnderFire, clock: Clock) -> None:
    """The liars leave; an honest job is run; nothing but that is left."""
    fire.dismiss()
    for _ in range(int(LEASE_S / PAUSE_S)):
        clock.now += 0.9 * PAUSE_S
        fire.turn([])
    scheduler = fire.daemon.scheduler
    scheduler.check()
    assert len(scheduler.nodes) == 1
    assert all(cluster.meta.expired for cluster in scheduler.clusters.values())
    assert fire.run_a_job()
    assert len(scheduler.state.pasts) <= PASTS_MAX
    assert len(fire.daemon.exchange.links) == len(fire.beside)
    for honest in fire.beside:
        assert set(honest.dismissals) <= {UNNEEDED}
        assert len(honest.sessions) <= 1 + fire.restarts + len(honest.dismissals)


def test_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, storms in lives(COUNT):
        clock = Clock()
        monkeypatch.setattr(node_shell, "time", clock)
        fire = NodeUnderFire(seed, tmp_path / str(seed), clock)

        def check(fire: NodeUnderFire = fire) -> None:
            fire.daemon.agent.check()
            assert len(fire.daemon.exchange.links) <= len(fire.liars) + 1

        def end(fire: NodeUnderFire = fire) -> Counter[str]:
            fire.quieten()
            assert not fire.daemon.exchange.links
            agent = fire.daemon.agent
            assert not agent.computations and not agent.workers
            assert fire.run_a_job()
            fire.quieten()
            return held(fire.daemon, fire.wire, fire.processes)

        left = live(fire.babbler, storms, fire.step, check, end)
        expect_no_growth(left, GROWTH_MAX_BYTES["node"])


def test_relays(monkeypatch: pytest.MonkeyPatch) -> None:
    for seed, storms in lives(COUNT):
        clock = Clock()
        monkeypatch.setattr(relay_shell, "time", clock)
        fire = RelayUnderFire(seed, clock)

        def check(fire: RelayUnderFire = fire) -> None:
            fire.relay.check()
            assert fire.relay.children <= CHILDREN + 1

        def end(fire: RelayUnderFire = fire) -> Counter[str]:
            fire.quieten()
            assert fire.relay.children == 0 and not fire.relay.exchange.links
            assert fire.carry_a_job()
            return held(fire.daemon, fire.wire)

        left = live(fire.babbler, storms, fire.step, check, end)
        expect_no_growth(left, GROWTH_MAX_BYTES["relay"])
        fire.relay.stop()


# -- datagrams ------------------------------------------------------------------------------

KEY = bytes(32)
LIMITS = {  # so low that they are reached
    "HINTS_MAX": 40, "SEEKERS_MAX": 15, "NONCES_MAX": 50, "QUESTIONS_MAX": 6, "ANSWERS_MAX": 20,
    "WAYS_MAX": 3,
}  # fmt: skip
PLACES_MAX = 3 * beacon.ADDRESSES_MAX + 1  # of one hint
SOURCES = [f"127.0.0.{number}" for number in range(50)]
SEEKS = {  # and whom it answers
    "broker": frozenset({"node", "relay"}),
    "node": frozenset({"broker", "relay"}),
    "relay": frozenset({"node", "relay", "broker"}),
}


@pytest.mark.parametrize("role", SEEKS)
def test_datagrams(role: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of strangers and of friends that make no sense: no answer is longer than its question."""
    for name, limit in LIMITS.items():
        monkeypatch.setattr(seeking, name, limit)
    chance = random.Random(FIRST_SEED)
    me = Face(role, "b" * 32, ("127.0.0.1:9700",), SEEKS[role], SEEKS[role])
    faced = Seeking(me, KEY, lambda: chance.randbytes(16), lambda instance: False, interval_s=0.5)
    faced.seek(0.0)
    nonces, now, most = [bytes(16)], 0.0, Counter[str]()
    for _ in range(COUNT):
        now += chance.choice((0.0, 0.001, 0.01, 0.1))
        friend = beacon.encode(made_up(chance, nonces), KEY)
        for data in (friend, spoilt_datagram(chance, friend)):
            for effect in faced.heard(data, chance.choice(SOURCES), now):
                assert len(getattr(effect, "datagram", b"")) <= len(data)
        for effect in faced.tick(now):
            if isinstance(effect, Ask):
                asked = beacon.decode(effect.datagram, KEY)
                assert asked is not None
                nonces = [*nonces[-9:], asked.nonce]
        most |= sizes(faced)
    reached = {"hints": "HINTS_MAX", "seekers": "SEEKERS_MAX", "nonces": "NONCES_MAX",
               "invited": "HINTS_MAX", "asked": "QUESTIONS_MAX", "ways": "WAYS_MAX"}  # fmt: skip
    for table, limit_name in reached.items():
        assert most[table] == LIMITS[limit_name], table
    assert most["answers"] <= LIMITS["ANSWERS_MAX"]
    assert most["places"] <= LIMITS["HINTS_MAX"] * PLACES_MAX
    faced.rest()
    faced.tick(now + 2 * seeking.HINT_S)
    assert not faced._hints and not faced._where and not faced._seekers


def sizes(faced: Seeking) -> Counter[str]:
    """Say how long the tables of a face are; this is about what no interface tells."""
    return Counter(
        hints=len(faced._hints), seekers=len(faced._seekers), nonces=len(faced._heard),
        invited=len(faced._invited), asked=len(faced._asked), answers=len(faced._answers),
        places=len(faced._where),
        ways=max((len(each.sources) for each in faced._heard.values()), default=0),
    )  # fmt: skip


def made_up(chance: random.Random, nonces: list[bytes]) -> beacon.Beacon:
    """Say anything that friends may say."""
    here = chance.random() < 0.5
    addresses = [f"127.0.{chance.randrange(3)}.1:{chance.randrange(1, 65536)}"] * (
        chance.random() < 0.9
    ) + [f"[::1]:{port}" for port in range(1, chance.choice((1, 1, 1, 9)))]
    return beacon.Beacon(
        beacon.HERE if here else beacon.SEEK,
        chance.choice(("broker", "node", "relay", "client")),
        f"{chance.randrange(300)}".ljust(32, "x"),
        chance.choice(nonces) if here or chance.random() < 0.3 else chance.randbytes(16),
        tuple(addresses),
    )


def spoilt_datagram(chance: random.Random, data: bytes) -> bytes:
    """Mutate a datagram; half of them are signed, by somebody who knows the secret."""
    if chance.random() < 0.5:
        return spoilt(chance, data)
    body = bytearray(data[: -beacon.MAC_BYTES])
    for _ in range(chance.randint(1, 3)):
        body[chance.randrange(len(body))] = chance.randrange(256)
    return bytes(body) + beacon._mac(bytes(body), KEY)


def test_what_is_made_up_gets_through_the_encoding() -> None:
    """Else nothing is tested: most of what liars say must be readable."""
    codec, babbler = Codec(), Babbler(random.Random(1), lies=0.3)
    began = time.monotonic()
    for _ in range(50):
        for kind in (m.OpenCluster, m.Submit, m.Done, m.Holding):
            header, _ = codec.encode(m.Envelope(1, 1, 0, [babbler.message(kind)]))
            codec.decode(header)
    assert time.monotonic() - began < SESSION_S
