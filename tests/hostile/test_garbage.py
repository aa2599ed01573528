"""Garbage of all kinds at the doors of a broker, a relay and a node that work meanwhile (B13).

``DISPY_GARBAGE`` says how many connections are made at each of five doors, by default 300, and a
fifteenth of that are silent; 10,000 is the scenario's full number.
"""

from __future__ import annotations

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

from . import daemons
from .babble import Babbler
from .daemons import Daemon
from .garbage import FRAMES, Storm
from .peer import Peer
from .underfire import FROM_CLIENT, FROM_NODE

COUNT = int(os.environ.get("DISPY_GARBAGE", "300"))
ROUND = 100  # connections between two jobs
JOB_S = 1.0  # a job takes no longer, whatever goes on
GROWTH_MAX = 20 << 20  # bytes
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
    def doors(self) -> dict[str, str]:
        """Where they listen, by the role of those for whom that is."""
        return {
            "node": self.broker.address,
            "client": daemons.clients_door(self.broker),
            "broker": self.node.address,
            "node of the relay": self.relay.address,
            "broker of the relay": daemons.brokers_door(self.relay),
        }

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


class Figures(NamedTuple):
    """What a daemon takes of the system."""

    memory: int
    descriptors: int


def figures(daemon: Daemon) -> Figures:
    return Figures(daemon.vitals.memory_info().rss, daemon.vitals.num_fds())


def survives(site: Site, attack: Callable[[], None]) -> None:
    """The daemons have nothing to show for an attack, and work as before."""
    before = [figures(each) for each in site.daemons]
    attack()
    assert site.job_s() < JOB_S
    deadline = time.monotonic() + PATIENCE_S
    for daemon, old in zip(site.daemons, before, strict=True):
        while figures(daemon).descriptors > old.descriptors:
            assert time.monotonic() < deadline, f"{figures(daemon)} after {old}"
            time.sleep(0.05)
        assert figures(daemon).memory - old.memory <= GROWTH_MAX, daemon.address
        assert "Traceback" not in daemon.log(), daemon.log()


def test_strangers(site: Site) -> None:
    """Whoever knows nothing: random, mutated, slow and silent connections."""
    slowest = 0.0

    def attack() -> None:
        nonlocal slowest
        storm = Storm(list(site.doors.values()), seed=1)
        storm.keep_silent(COUNT // 15)
        storm.be_slow(20)
        for _ in range(COUNT * len(site.doors) // ROUND):
            storm.rage(ROUND)
            storm.drip()
            slowest = max(slowest, site.job_s())
        storm.end()

    Storm(list(site.doors.values()), seed=0).rage(ROUND)  # what is reserved once is
    survives(site, attack)
    assert slowest < JOB_S


@pytest.mark.parametrize(
    "who", ["client", "node", "broker", "node of the relay", "broker of the relay"]
)
def test_insiders(site: Site, who: str) -> None:
    """Whoever may be here says what nobody understands, or what has no place there."""
    role, address = who.partition(" ")[0], site.doors[who]
    chance = random.Random(2)

    def attack() -> None:
        for _ in range(SESSIONS):
            with Peer(role, address, site.keys, cpus=2) as peer:
                if role == "broker":  # there is another one, and it says so
                    assert "works for" in peer.refusal()
                    continue
                peer.join()
                rage(peer, role, chance)

    attack()
    survives(site, attack)


def rage(peer: Peer, role: str, chance: random.Random) -> None:
    """Say things in a session until it is over, or enough."""
    babbler = Babbler(chance, lies=0.1, many=10)  # a broker keeps what it's given for a minute
    kinds = FROM_CLIENT if role == "client" else FROM_NODE
    harmless = [each for each in kinds if each.__name__ not in ("Operate", "Attach")]
    for _ in range(10):
        peer.pump(0)
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
