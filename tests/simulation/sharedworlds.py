"""Worlds with a broker that several programs share, and that has a journal.

The broker, the programs and their successors are killed as well as nodes. A seed here is another
run than the same seed of `scenarios`.
"""

from __future__ import annotations

import gc
import random
from functools import partial

from dispy.broker.settings import FAIR, FIFO, Settings

from .extras import Extras
from .faults import strike
from .jobs import Course
from .scenarios import FAULTS_UNTIL_S, JOBS, JOBS_MANY, plan_user, play
from .world import World

LOADED_JOBS = 20  # so few that jobs wait on disk
PORTIONS = 12  # in which many jobs are submitted
USERS_DONE_S = 9.5  # by then users have submitted everything


def settings_of(chance: random.Random) -> Settings:
    """Draw how the broker works."""
    return Settings(
        durable=True,
        shared=True,
        policy=chance.choice([FAIR, FAIR, FIFO]),
        client_lease_s=chance.choice([10.0, 60.0, 60.0]),
        retain_s=chance.choice([30.0, 100.0]),
        adopt_s=chance.choice([5.0, 25.0]),
        cooperative=chance.random() < 0.5,
        loaded_jobs=chance.choice([LOADED_JOBS, LOADED_JOBS, 20_000]),
    )


def shared_world(seed: int, faults: int) -> World:
    """Make a world of one broker, up to three programs and three nodes, and plan what happens."""
    drawn = random.Random(f"settings of {seed}")
    world = World(f"shared {seed}", settings_of(drawn))
    chance = world.chance
    world.network.is_local = chance.random() < 0.5
    for number in range(3):
        machine = world.add_machine(chance.randint(1, 4), dials=chance.random() < 0.5)
        late = number == 2 and chance.random() < 0.3
        world.clock.at(chance.uniform(0, 6) if late else 0.0, partial(world.start_node, machine))
    for _ in range(chance.choice([0, 0, 1, 2])):
        world.add_client()
    clusters = len(world.clients) + (chance.random() < 0.3)
    alone = chance.randint(1, clusters) if chance.random() < 0.15 else 0
    jobs = (JOBS_MANY if seed % 4 == 1 else JOBS) // clusters
    for number in range(clusters):
        extras = Extras(random.Random(f"extras of shared {seed}, {number}"))
        extras.features = [each for each in extras.features if each not in NOT_SHARED]
        number = world.open_cluster(
            reentrant=chance.random() < 0.5,
            max_tasks=chance.choice([0, 0, 1, 1, 3]),
            pulse_s=chance.choice([0.2, 1.0, 5.0]),
            grace_s=chance.choice([0.1, 1.0]),
            client=world.clients[number % len(world.clients)],
            exclusive=number + 1 == alone,
            weight=chance.choice([1.0, 1.0, 3.0]),
            **extras.opening(),
        )
        wish = world.wishes[number]
        wish.closes = bool(alone) or chance.random() < 0.2
        plan_user(world, number, jobs, extras, PORTIONS if jobs > JOBS else 4)
        extras.plan(world, number)
    for _ in range(faults):
        world.clock.at(chance.uniform(0.0, FAULTS_UNTIL_S), partial(strike, world))
    return world


NOT_SHARED = {"asks"}  # users of a shared broker can't choose CPUs by themselves


def from_shared_seed(seed: int, faults: int) -> World:
    """Make the world that a seed stands for: with none of the faults, or some, or all."""
    return shared_world(seed, seed % (faults + 1))


def play_shared_seed(seed: int, faults: int) -> World:
    """Play one random world."""
    gc.disable()
    try:
        world = from_shared_seed(seed, faults)
        play(world)
    finally:
        gc.enable()
    return world


# -- what seldom happens by chance ------------------------------------------------------------


def small_world(name: str, clients: int = 1) -> World:
    """Make a world in which each program has a cluster with jobs for some seconds."""
    world = World(name, Settings(durable=True, shared=True, client_lease_s=30.0, retain_s=30.0))
    world.lost_nodes = True
    for number in range(2):
        world.start_node(world.add_machine(2, dials=bool(number)))
    for _ in range(1, clients):
        world.add_client()
    for client in world.clients:
        number = world.open_cluster(max_tasks=0, grace_s=0.1, client=client)
        world.submit(number, [Course(0.3)] * 30)
    return world


def play_taken_over() -> World:
    """Take a cluster from a program that falls silent, and kill the broker after that."""
    world = small_world("taken over", clients=2)
    world.run(1.0)
    victim = world.clients[1]
    victim.pause(world.now + 12.0)
    world.leave(victim)
    world.rescue(victim, force=True, patience_s=0.5)
    world.run(1.0)
    world.kill_broker()
    world.run(0.5)
    world.start_broker()
    play(world, until=14.0)
    return world


def play_silent_client(is_taken: bool = False) -> World:
    """Cut a program off for a while in which its jobs end; maybe another one takes them over."""
    world = small_world("silent client")
    world.run(1.0)
    ends = [end for end in world.network.open_ends() if end.socket is world.client.socket]
    if is_taken:
        world.leave(world.client)
        world.rescue(world.client, force=True, patience_s=1000.0)
    lasts = 12.0
    world.network.block("client", "broker", world.now + lasts)
    world.network.block("broker", "client", world.now + lasts)
    world.network.cut(ends[0], (0.0, 0.0))
    play(world, until=lasts)
    return world


def play_orphan() -> World:
    """Kill a program, then the broker; nobody ever comes for the jobs."""
    world = small_world("orphan")
    world.run(1.0)
    world.kill_client(world.client)
    for wish in world.wishes.values():
        wish.is_orphan = True
    world.run(0.5)
    world.kill_broker()
    world.start_broker()
    play(world, until=1.0)
    return world


def play_full_disk() -> World:
    """Submit jobs, and open a cluster, while the broker's disk is full."""
    world = small_world("full disk")
    assert world.disk is not None
    world.run(1.0)
    world.disk.is_full = True
    world.run(2.0)
    world.submit(1, [Course(0.1)] * 10)
    number = world.open_cluster(client=world.client)
    world.submit(number, [Course(0.1)] * 10)
    world.run(1.0)
    world.disk.is_full = False
    play(world, until=1.0)
    return world


def play_stopped_nodes() -> World:
    """Stop all nodes, which give back what they haven't begun, and then kill the broker."""
    world = small_world("stopped nodes")
    world.submit(1, [Course(0.01)] * 600)
    world.run(3.0)
    for machine in world.machines.values():
        world.stop_node(machine)
    world.run(1.0)
    world.kill_broker()
    world.start_broker()
    for machine in world.machines.values():
        world.start_node(machine)
    play(world, until=1.0)
    return world


def play_lost_records() -> World:
    """Kill the broker while jobs say much, and their program can't hear it."""
    world = small_world("lost records")
    world.submit(1, [Course(8.0, records=20)] * 4)
    world.run(4.0)
    world.client.pause(world.now + 2.0)
    world.run(0.5)
    world.kill_broker()
    world.start_broker()
    play(world, until=4.0)
    return world
