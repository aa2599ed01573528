"""Worlds with relays: one, or two in a row, with nodes behind them and maybe one beside.

A quarter of them has a shared broker with a journal. A seed here is another run than the same seed
of `scenarios`.
"""

from __future__ import annotations

import gc
import random
from collections import Counter
from functools import partial

from dispy.protocol.messages import Buffer, JobOptions, Large

from .extras import Extras
from .faults import strike
from .files import FILES
from .jobs import Course
from .network import End
from .scenarios import FAULTS_UNTIL_S, JOBS, plan_user, play
from .sharedworlds import NOT_SHARED, settings_of
from .world import World

NODES = 3


def relayed_world(seed: int, faults: int) -> World:
    """Make a world of one broker, one or two relays and three nodes, and plan what happens."""
    drawn = random.Random(f"settings of relayed {seed}")
    is_shared = drawn.random() < 0.25
    world = World(f"relayed {seed}", settings_of(drawn) if is_shared else None)
    chance = world.chance
    world.network.is_local = chance.random() < 0.5
    outpost = world.add_outpost(dials=chance.random() < 0.5)
    if chance.random() < 0.5:
        outpost = world.add_outpost(dials=chance.random() < 0.5, above=outpost)
    for each in world.outposts.values():
        world.clock.at(chance.choice([0.0, 0.0, 2.0]), partial(world.start_relay, each))
    for number in range(NODES):
        where = outpost if number < 2 or chance.random() < 0.5 else None
        machine = world.add_machine(chance.randint(1, 4), chance.random() < 0.5, where)
        late = number == 2 and chance.random() < 0.3
        world.clock.at(chance.uniform(0, 6) if late else 0.0, partial(world.start_node, machine))
    extras = Extras(random.Random(f"extras of relayed {seed}"))
    if is_shared:
        extras.features = [each for each in extras.features if each not in NOT_SHARED]
    number = world.open_cluster(
        reentrant=chance.random() < 0.5,
        max_tasks=chance.choice([0, 0, 1, 1, 3]),
        pulse_s=chance.choice([0.2, 1.0, 5.0]),
        grace_s=chance.choice([0.1, 1.0]),
        **extras.opening(),
    )
    plan_user(world, number, JOBS, extras)
    extras.plan(world, number)
    for _ in range(faults):
        world.clock.at(chance.uniform(0.0, FAULTS_UNTIL_S), partial(strike, world))
    return world


def from_relayed_seed(seed: int, faults: int) -> World:
    """Make the world that a seed stands for: with none of the faults, or some, or all."""
    return relayed_world(seed, seed % (faults + 1))


def play_relayed_seed(seed: int, faults: int) -> World:
    """Play one random world."""
    gc.disable()
    try:
        world = from_relayed_seed(seed, faults)
        play(world)
    finally:
        gc.enable()
    return world


# -- what seldom happens by chance ------------------------------------------------------------


def row_of_relays(name: str, relays: int, nodes: int, dials: bool = True) -> World:
    """Make a world with some relays in a row, and nodes behind the last one, all at work."""
    world = World(name)
    outpost = None
    for number in range(relays):
        outpost = world.add_outpost(dials=dials or bool(number % 2), above=outpost)
    for number in range(nodes):
        world.start_node(world.add_machine(2, bool(number % 2), outpost))
    for each in world.outposts.values():
        world.start_relay(each)
    world.open_cluster(max_tasks=0, pulse_s=2.0)
    world.run(3.0)
    assert len(world.broker.scheduler.nodes) == nodes
    return world


def play_slow_trunk(rate: float, relays: int = 1) -> World:
    """Send long payloads over a slow trunk; then play on to the end."""
    world = row_of_relays(f"slow trunk of {rate}, {relays}", relays, nodes=4)
    trunk = [("broker", "relay1"), ("relay1", "broker")]
    for way in trunk:
        world.network.rates[way] = rate
    for seq in range(8):
        chunks = [random.Random(seq * 3 + part).randbytes(1 << 20) for part in range(3)]
        world.submit(1, [Course(0.5)], Large(3 << 20, [*chunks]))
    world.submit(1, [Course(0.01)] * 100)
    assert world.run(1.5 * 24 * (1 << 20) / rate + 10.0, world.is_idle), "it takes too long"
    for process in world.processes():
        for link in process.exchange.links.values():
            assert link.epoch == 1, f"a session of {process.identity.instance} has broken"
    play(world, until=0.0)
    return world


def play_shared_file(nodes: int = 4, relays: int = 2) -> World:
    """Have a file fetched by several nodes behind relays; it crosses each trunk once."""
    world = row_of_relays("shared file", relays, nodes)
    sent = count_bytes(world)
    file = FILES[-1]
    with_file = Course(1.0, options=JobOptions(files=[file]))
    world.submit(1, [with_file] * (2 * nodes))
    assert world.run(60.0, world.is_idle), "it takes too long"
    for one, other in (("broker", "relay1"), ("relay1", "relay2")):
        crossed = sent[one, other]
        assert crossed < 1.2 * file.size, f"{crossed} bytes from {one} to {other}"
    play(world, until=0.0)
    return world


def count_bytes(world: World) -> Counter[tuple[str, str]]:
    """Count all bytes that arrive, by machines."""
    sent: Counter[tuple[str, str]] = Counter()
    watch = world.network.watch

    def count(end: End, frames: list[Buffer]) -> None:
        sent[end.other.socket.machine, end.socket.machine] += sum(map(len, frames))
        watch(end, frames)

    world.network.watch = count
    return sent


def play_dead_relay(relays: int = 1, lasts_s: float = 2.0) -> World:
    """Kill a relay while jobs run; their nodes go on, and nothing is run twice."""
    world = row_of_relays(f"dead relay of {relays}", relays, nodes=2)
    world.submit(1, [Course(1.0, records=3)] * 20)
    world.run(1.5)
    outpost = world.outposts["relay1"]
    world.end_relay(outpost, is_stopped=False)
    world.run(lasts_s)
    world.start_relay(outpost)
    world.lost_nodes = False
    play(world, until=0.0)
    return world


def play_dead_node(relays: int = 1) -> World:
    """Kill a node that a relay has dialled: that it can't be reached is known at once.

    When relay and node are on one host, so is its end.
    """
    world = row_of_relays(f"dead node behind {relays}", relays, nodes=2)
    world.network.is_local = False
    world.submit(1, [Course(3.0)] * 4)
    world.run(1.0)
    machine = world.machines["node1"]
    assert machine.node is not None
    nodes, peer = world.broker.scheduler.nodes, machine.node.identity.instance
    world.kill_node(machine)
    world.run(0.05)
    assert not nodes[peer].online, "nobody has told the broker that a node can't be reached"
    world.network.is_local = True
    world.run(2.0)
    assert peer not in nodes, "nobody has told the broker that a node is dead"
    world.start_node(machine)
    play(world, until=0.0)
    return world
