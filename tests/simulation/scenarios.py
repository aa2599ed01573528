"""Runs of a world from its beginning to its end, each decided by one number."""

from __future__ import annotations

import gc
import random
from functools import partial

from dispy.broker.nodes import LEASE_PULSES
from dispy.protocol.dials import GREETING_S, REDIAL_MAX_S, REFUSED_PAUSE_S
from dispy.protocol.link import BEAT_S, RELAYED_SILENCE_S, SILENCE_S
from dispy.protocol.messages import CLOSE, JobOptions, Large
from dispy.relay.engagement import KEEP_S

from . import promises
from .extras import Extras
from .faults import strike
from .jobs import HANG_S, Course, End
from .network import CONNECT_TIMEOUT_S
from .world import World

JOBS = 200
JOBS_MANY = 450  # more than a broker takes before it knows how fast they go
FAULTS_MAX = 3
FAULTS_UNTIL_S = 8.0
LARGE = Large(3 << 20, [bytes(1 << 20)] * 3)
CLOSE_S = 15.0  # from the close of a cluster to the end of its last job process
SLACK_S = 2.0
WATCH_S = 0.5  # how often users look whether all is done
RESCUES_S = 60.0  # the time that taking clusters over may take, with a few tries
ALLOCATE_AFTER_S = (0.0, 5.0, 20.0)  # also nodes that come back a little later
GIVEN_UP_S = 40.0  # longer than any greeting lasts
GREETED_S = 5.0  # until a node is given up that is being greeted anew
END_S = 4.0  # a job that heeds nothing has ended so long after its time
HEARD_S = 0.03  # a job may wait so long after it has said something
PLAIN = JobOptions()


def courses(world: World, count: int) -> list[Course]:
    """Draw what jobs do: most are short and return."""
    chance = world.chance
    scale = chance.choice([0.001, 0.02, 0.1])
    drawn = []
    for _ in range(count):
        run_s = scale * chance.uniform(0.2, 2.0)
        kind = chance.random()
        if kind < 0.9:
            drawn.append(Course(run_s))
        elif kind < 0.94:
            drawn.append(Course(run_s, End.RAISE))
        elif kind < 0.96:
            drawn.append(Course(run_s, End.CRASH))
        elif kind < 0.98:
            drawn.append(Course(chance.uniform(1.0, 6.0)))
        else:
            drawn.append(Course(chance.uniform(0.5, 3.0), End.RETURN, False, kind < 0.99))
    return drawn


def random_world(seed: int, faults: int, jobs: int = JOBS) -> World:
    """Make a world of one client, one broker and three nodes, and plan all that happens in it."""
    world = World(seed)
    chance = world.chance
    world.network.is_local = chance.random() < 0.5
    fails = chance.random() < 0.1
    for number in range(3):
        machine = world.add_machine(chance.randint(1, 4), dials=chance.random() < 0.5)
        late = number == 2 and chance.random() < 0.3
        world.clock.at(chance.uniform(0, 6) if late else 0.0, partial(world.start_node, machine))
        if fails and number < 2:
            machine.setup_fails.add("1")
    clusters = 2 if chance.random() < 0.3 else 1
    for number in range(clusters):
        extras = Extras(random.Random(f"extras of {seed}, {number}"))
        number = world.open_cluster(
            reentrant=chance.random() < 0.5,
            max_tasks=chance.choice([0, 0, 1, 1, 3]),
            pulse_s=chance.choice([0.2, 1.0, 5.0]),
            grace_s=chance.choice([0.1, 1.0]),
            **extras.opening(),
        )
        plan_user(world, number, jobs // clusters, extras)
        extras.plan(world, number)
    for _ in range(faults):
        world.clock.at(chance.uniform(0.0, FAULTS_UNTIL_S), partial(strike, world))
    return world


def hang(world: World, number: int) -> None:
    """Submit a job that never ends by itself, and cancel it at some time."""
    chance = world.chance
    course = Course(HANG_S, End.RETURN, chance.random() < 0.5, chance.random() < 0.5)
    world.submit(number, [course])
    seq = len(world.wishes[number].courses)
    world.clock.after(chance.uniform(0.0, 5.0), partial(world.cancel, number, seq))


def plan_user(world: World, number: int, jobs: int, extras: Extras, portions_max: int = 4) -> None:
    """Have jobs submitted in a few portions, some cancelled, and maybe the cluster closed."""
    chance = world.chance
    portions = chance.randint(1, portions_max)
    drawn = extras.change(courses(world, jobs))
    large = LARGE if chance.random() < 0.05 else None
    for portion in range(portions):
        part = drawn[portion::portions]
        when = chance.uniform(0, 4)
        world.clock.at(when, partial(world.submit, number, part, large))
    if chance.random() < 0.3:
        world.clock.at(chance.uniform(0, 4), partial(hang, world, number))
    if chance.random() < 0.5:
        for _ in range(chance.randint(1, 20)):
            world.clock.at(chance.uniform(0, 9), partial(cancel_one, world, number))
    if chance.random() < 0.1:
        world.clock.at(chance.uniform(1, 9), partial(world.close_cluster, number))


def cancel_one(world: World, number: int) -> None:
    """Cancel some job, ended or not."""
    seqs = list(world.wishes[number].courses)
    if seqs:
        world.cancel(number, world.chance.choice(seqs))


def patience_s(world: World) -> float:
    """Say how long after the last fault the last job may end."""
    openings = [wish.opening for wish in world.wishes.values()]
    lease_s = LEASE_PULSES * max(opening.computation.pulse_interval for opening in openings)
    notice_s = SILENCE_S + 3 * BEAT_S
    reach_s = CONNECT_TIMEOUT_S + GREETING_S + REDIAL_MAX_S + REFUSED_PAUSE_S
    courses = [course for wish in world.wishes.values() for course in wish.courses.values()]
    work = [work_s(course) for course in courses]
    cpus = min([node.identity.cpus for node in world.live_nodes()], default=1)
    setup_s = max(opening.computation.setup_timeout for opening in openings)
    work_s_in_all = sum(work) / cpus + 3 * max(work, default=0.0)
    if world.outposts:
        notice_s += len(world.outposts) * (RELAYED_SILENCE_S + KEEP_S)
        reach_s *= 1 + len(world.outposts)
    patience = lease_s + notice_s + reach_s + setup_s + work_s_in_all + SLACK_S
    if world.disk is not None:
        patience += world.settings.client_lease_s + world.settings.adopt_s + RESCUES_S
        patience += CLOSE_S * len(world.wishes)  # one after the other, if one is exclusive
    return patience


def work_s(course: Course) -> float:
    """Say how long a job may keep a CPU busy, in all of its attempts."""
    options = course.options or PLAIN
    run_s = course.run_s
    if run_s >= HANG_S:
        run_s = options.timeout + END_S if options.timeout else 0.0
    return (1 + options.retries) * (run_s + course.records * HEARD_S)


def play(world: World, until: float = FAULTS_UNTIL_S + 2.0) -> None:
    """Run a world to its end, and check all that was promised.

    Until then nobody waits for anything, since more is going to happen.
    """
    world.run(until)
    world.run(world.healed_at - world.now)
    world.network.heal()
    world.start_broker()
    for outpost in world.outposts.values():
        world.start_relay(outpost)
    world.broker.dies_at = ""
    world.note("all faults are over")
    world.close_stuck()
    watch(world)
    for after_s in ALLOCATE_AFTER_S:
        world.clock.after(after_s, world.allocate_all)
        world.clock.after(after_s, world.resume_all)
    world.run(patience_s(world), world.is_idle)
    promises.check_ends(world)
    settle(world)
    promises.check_registered(world)
    promises.check_free(world)
    promises.check_used(world)
    world.close_all()
    lease_s = world.settings.client_lease_s if world.disk is not None else 0.0
    assert world.run(lease_s + CLOSE_S, world.is_closed), "a cluster doesn't close"
    world.run(SLACK_S)
    if world.disk is not None:
        kept_s = lease_s + world.settings.adopt_s + world.settings.retain_s + SLACK_S
        world.run(kept_s, lambda: not world.broker.scheduler.clusters)
        world.run(SLACK_S)
    promises.check_ends(world)
    promises.check_clean(world)


def watch(world: World) -> None:
    """Have users close their clusters when all is done, if that is what they do."""
    if world.disk is not None:
        world.close_done()
        world.clock.after(WATCH_S, partial(watch, world))


def play_cancelled_queue() -> World:
    """Cancel more jobs than a broker takes at a time while no node runs; then run others."""
    world = World("cancelled queue")
    machine = world.add_machine(2, dials=False)
    number = world.open_cluster()
    world.submit(number, [Course(0.01)] * JOBS_MANY)
    world.run(1.0)
    for seq in list(world.wishes[number].courses):
        world.cancel(number, seq)
    world.submit(number, [Course(0.01)] * JOBS_MANY)
    world.run(1.0)
    world.start_node(machine)
    play(world)
    return world


def play_given_up_node(silent_s: float = GIVEN_UP_S, is_cut: bool = False) -> World:
    """Have a node fall silent for longer than its lease, with jobs that only it may run."""
    world = World("given up node")
    first = world.add_machine(2, dials=False)
    world.start_node(first)
    world.start_node(world.add_machine(2, dials=True))
    number = world.open_cluster(pulse_s=0.2, grace_s=0.1)
    world.run(1.0)
    nodes = world.wishes[number].record.met.values()
    (node,) = [each.id for each in nodes if each.name == first.name]
    only = JobOptions(node=node)
    world.submit(number, [Course(1.0, records=20, options=only)] * 2)
    world.submit(number, [Course(0.3, options=only)] * 20)
    world.run(0.1)
    # The client's answers to what the jobs say get lost with the node's session.
    world.network.block("client", "broker", world.now + 1.0)
    world.run(0.6)
    world.lost_nodes = True
    world.longest_pause_s = silent_s
    assert first.node is not None
    first.node.pause(world.now + silent_s)
    if is_cut:
        ends = world.network.open_ends()
        (end,) = [each for each in ends if each.other.socket.machine == first.name]
        world.network.cut(end, (0.0, 0.0))
    world.run(silent_s)
    play(world, until=0.0)
    return world


def play_closed_node() -> World:
    """Close a node that is given up before its last job has ended, and comes back."""
    world = World("closed node")
    first = world.add_machine(2, dials=True)
    world.start_node(first)
    world.start_node(world.add_machine(2, dials=True))
    number = world.open_cluster(reentrant=True, pulse_s=0.2)
    world.run(1.0)
    nodes = world.client.records[number].met.values()
    (node,) = [each.id for each in nodes if each.name == first.name]
    world.submit(number, [Course(GIVEN_UP_S)] * 4)
    world.run(0.5)
    world.request(number, CLOSE, node)
    world.run(0.5)
    world.lost_nodes = True
    assert first.node is not None
    first.node.pause(world.now + GIVEN_UP_S)
    world.longest_pause_s = GIVEN_UP_S
    world.run(GIVEN_UP_S + 1.0)
    assert not [each for each in world.client.records[number].nodes if each == node]
    play(world, until=0.0)
    return world


def settle(world: World) -> None:
    """Let the last node be noticed: dead, back or new."""

    def settled() -> bool:
        try:
            promises.check_registered(world)
            promises.check_free(world)
            promises.check_used(world)
        except AssertionError:
            return False
        return True

    world.run(patience_s(world), settled)


def from_seed(seed: int, faults: int = FAULTS_MAX) -> World:
    """Make the world that a seed stands for: with none of the faults, or some, or all."""
    return random_world(seed, seed % (faults + 1), JOBS_MANY if seed % 20 == 7 else JOBS)


def play_seed(seed: int, faults: int = FAULTS_MAX) -> World:
    """Play one random world. The garbage collector would cost a third of the time."""
    gc.disable()
    try:
        world = from_seed(seed, faults)
        play(world)
    finally:
        gc.enable()
    return world
