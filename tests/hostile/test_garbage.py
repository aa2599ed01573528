"""Garbage of all kinds at the doors of a broker, a relay and a node that work meanwhile (B13).

``DISPY_GARBAGE`` says how many connections are made at each of five doors, by default 300, and a
fifteenth of that are silent; 10,000 is the scenario's full number.
"""

from __future__ import annotations

import math
import os
import random
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import pytest

import dispy
from dispy.protocol import secret as secrets
from dispy.protocol.events import Joined
from dispy.protocol.keys import Keys
from dispy.protocol.sockets import HANDSHAKE_MS
from dispy.protocol.wire import FRAME_BYTES_MAX

from . import daemons
from .babble import Babbler
from .daemons import Daemon, Watch, figures
from .garbage import (
    AT_ONCE,
    BURST,
    FRAMES,
    HUGE,
    PACE_S,
    POUR,
    Call,
    Calls,
    Storm,
    beginnings,
    giant,
    greeting,
    hello,
)
from .peer import Peer
from .underfire import FROM_CLIENT, FROM_NODE

COUNT = int(os.environ.get("DISPY_GARBAGE", "300"))
ROUND = 100  # connections between two jobs
JOB_S = 1.0  # a job takes no longer, whatever goes on
GROWTH_MAX = 20 << 20  # bytes
WAVES = 3  # of giants, with a job after each
GIANTS = 10  # at each door
EARLIEST_S = HANDSHAKE_MS / 1000 - 0.1  # what is hung up on before that, is so for another reason
LATEST_S = 10.0  # on a busy machine; ZeroMQ's own limit would be 30 s
OWN = 15  # descriptors of a daemon for a job, and for those who have gone but just now
SESSIONS = max(10, COUNT // 30)
PATIENCE_S = 30.0


def double(number: int) -> int:
    return number * 2


class Site(NamedTuple):
    """A broker, a node behind a relay, and a cluster; without a secret, or with one."""

    broker: Daemon
    relay: Daemon
    node: Daemon
    cluster: dispy.SharedJobCluster
    keys: Keys | None

    @property
    def daemons(self) -> list[Daemon]:
        return [self.broker, self.relay, self.node]

    @property
    def doors_each(self) -> list[int]:
        """How many of the doors each daemon has."""
        return [2, 2, 1]

    @property
    def doors(self) -> dict[str, str]:
        """Where they listen, by the role of those for whom that is."""
        return {
            "node": self.broker.address,
            "client": daemons.clients_door(self.broker),
            "broker": self.node.address,
            "node of the relay": self.relay.address,
            "broker of the relay": daemons.brokers_door(self.relay),
        }

    @property
    def mechanism(self) -> bytes:
        """How connections are secured, as the greeting says it."""
        return b"NULL" if self.keys is None else b"CURVE"

    def job_s(self) -> float:
        """Run a job; return how long that took."""
        began = time.monotonic()
        job = self.cluster.submit(21)
        assert job is not None and job.finish.wait(PATIENCE_S), self.broker.log()[-2000:]
        assert job.result == 42, job.exception
        return time.monotonic() - began


@pytest.fixture(scope="module", params=["open", "secret"])
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("garbage")
    text = secrets.new() if request.param == "secret" else ""
    environment = {"DISPY_SECRET": text} if text else {}
    broker = daemons.broker(folder / "broker", environment=environment)
    relay = daemons.relay(folder / "relay", "--broker", broker.address, environment=environment)
    node = daemons.node(folder / "node", "--broker", relay.address, environment=environment)
    address = daemons.clients_door(broker)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISPY_SECRET_FILE", "")
        cluster = dispy.SharedJobCluster(double, scheduler_node=address, secret=text)
    site = Site(broker, relay, node, cluster, secrets.read(text).keys if text else None)
    site.job_s()
    yield site
    cluster.close()
    node.stop()
    relay.stop()
    broker.stop()


def survives(site: Site, attack: Callable[[Watch], None], at_a_door: int) -> None:
    """The daemons have nothing to show for an attack, and work as before.

    Meanwhile they take little memory, and descriptors for so many connections at each door.
    """
    watch = Watch(site.daemons)
    attack(watch)
    assert site.job_s() < JOB_S
    deadline = time.monotonic() + PATIENCE_S
    for daemon, doors, old, peak in zip(
        site.daemons, site.doors_each, watch.before, watch.peaks, strict=True
    ):
        assert peak.memory - old.memory <= GROWTH_MAX, f"{daemon.address}: {peak} after {old}"
        descriptors = peak.descriptors - old.descriptors
        assert descriptors <= at_a_door * doors + OWN, f"{daemon.address}: {peak} after {old}"
        while figures(daemon).descriptors > old.descriptors:
            assert time.monotonic() < deadline, f"{figures(daemon)} after {old}"
            time.sleep(0.05)
        assert figures(daemon).memory - old.memory <= GROWTH_MAX, daemon.address
        assert "Traceback" not in daemon.log(), daemon.log()


def test_strangers(site: Site) -> None:
    """Whoever knows nothing: random, mutated, slow and silent connections."""
    slowest = 0.0
    silent, slow = COUNT // 15, 20

    def attack(watch: Watch) -> None:
        nonlocal slowest
        storm = Storm(list(site.doors.values()), seed=1)
        storm.keep_silent(silent)
        storm.be_slow(slow)
        for _ in range(COUNT * len(site.doors) // ROUND):
            storm.rage(ROUND, watch.look)
            storm.drip()
            slowest = max(slowest, site.job_s())
        storm.end()
        assert watch.has_seen_connections()

    first = Storm(list(site.doors.values()), seed=0)  # what is reserved once is
    first.rage(ROUND)
    first.end()
    survives(site, attack, math.ceil((silent + slow + AT_ONCE + ROUND) / len(site.doors)))
    assert slowest < JOB_S


def test_giants(site: Site) -> None:
    """A frame that is too long ends a connection at its header, before anything is proved.

    That's long before the limit of handshakes, so it is the length that does it.
    """
    data = greeting(site.mechanism) + giant(HUGE) + bytes(POUR)

    def attack(watch: Watch) -> None:
        for _ in range(WAVES):
            with Calls() as calls:
                for door in list(site.doors.values()) * GIANTS:
                    calls.make(Call(door, "a giant", data))
                took = until_hung_up(calls, watch)
            assert took[-1] < (EARLIEST_S,), took
            assert site.job_s() < JOB_S

    survives(site, attack, GIANTS)


def test_giants_in_part(site: Site) -> None:
    """Who announces as much as is allowed, and says little of it, costs about what is said."""
    data = greeting(site.mechanism) + giant(FRAME_BYTES_MAX - 1) + bytes(BURST)

    def attack(watch: Watch) -> None:
        with Calls() as calls:
            for door in list(site.doors.values()) * GIANTS:
                calls.make(Call(door, "a part", data))
            are_hung_up_in_time(site, calls, watch)

    survives(site, attack, GIANTS)


def test_silence(site: Site) -> None:
    """Whoever stops anywhere in the handshake, or says a byte now and then, is hung up on."""
    slow = greeting(site.mechanism) + hello(site.mechanism)

    def attack(watch: Watch) -> None:
        with Calls() as calls:
            for door in site.doors.values():
                calls.make(Call(door, "a byte now and then", slow, PACE_S))
                for what, data in beginnings(site.mechanism).items():
                    calls.make(Call(door, what, data))
            are_hung_up_in_time(site, calls, watch)

    survives(site, attack, 1 + len(beginnings(site.mechanism)))


def until_hung_up(calls: Calls, watch: Watch) -> list[tuple[float, str]]:
    """Hold connections until the daemons have ended them all; return after how long, sorted."""
    deadline = time.monotonic() + LATEST_S
    while calls.open:
        assert time.monotonic() < deadline, [each.name for each in calls.open]
        calls.attend()
        watch.look()
    return sorted((each.took_s, each.name) for each in calls.over)


def are_hung_up_in_time(site: Site, calls: Calls, watch: Watch) -> None:
    """The limit of handshakes, and nothing else, ends each; the daemons work until then."""
    calls.attend()  # now all but the slow have said their part
    watch.look()
    assert site.job_s() < JOB_S
    took = until_hung_up(calls, watch)
    assert took[0] > (EARLIEST_S,), took
    assert took[-1] < (LATEST_S,), took
    assert watch.has_seen_connections()


@pytest.mark.parametrize(
    "who", ["client", "node", "broker", "node of the relay", "broker of the relay"]
)
def test_insiders(site: Site, who: str) -> None:
    """Whoever may be here says what nobody understands, or what has no place there."""
    role, address = who.partition(" ")[0], site.doors[who]
    chance = random.Random(2)

    def attack(watch: Watch) -> None:
        for _ in range(SESSIONS):
            with Peer(role, address, site.keys, cpus=2) as peer:
                if role == "broker":  # there is another one, and it says so
                    assert "works for" in peer.refusal()
                    continue
                peer.join()
                rage(peer, role, chance, watch)

    attack(Watch(site.daemons))  # what is reserved once is
    survives(site, attack, 1)


def rage(peer: Peer, role: str, chance: random.Random, watch: Watch) -> None:
    """Say things in a session until it is over, or enough."""
    babbler = Babbler(chance, lies=0.1, many=10)  # a broker keeps what it's given for a minute
    kinds = FROM_CLIENT if role == "client" else FROM_NODE
    harmless = [each for each in kinds if each.__name__ not in ("Operate", "Attach")]
    for _ in range(10):
        peer.pump(0)
        watch.look()
        if peer.peer not in peer.exchange.links:
            return
        route = peer.exchange.links[peer.peer].route
        if route is not None and chance.random() < 0.3:
            junk = chance.choice((chance.randbytes(50), b"\x91" * 50_000, *FRAMES[3:]))
            peer.bus.send(route, [junk, *[b"x"] * chance.randrange(9)])
        else:
            peer.say(babbler.message(chance.choice(harmless)))
    peer.exchange.goodbye(peer.peer)  # what it has opened is closed, and not kept for it
    peer.pump()
    assert any(isinstance(each, Joined) for each in peer.events)
