"""Worlds with relays: one, or two in a row, with nodes behind them and maybe one beside.

A quarter of them has a shared broker with a journal. A seed here is another run than the same seed
of `scenarios`.
"""

from __future__ import annotations

import gc
import random
from functools import partial

from .extras import Extras
from .faults import strike
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
