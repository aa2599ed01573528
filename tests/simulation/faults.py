"""Everything that can go wrong in a world, each at a time and of a kind that chance decides.

A fault is a function of a world that does its harm at once and says when it is over; `strike`
picks one. Faults that were seen to reveal something are worth more than new scenarios.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

from dispy.protocol.messages import DRAIN, RESUME, Buffer

from .broker import POINTS
from .network import End, Fate
from .processes import ClientProcess
from .world import Machine, World

TAMPERED = 0.2  # of all messages, while single messages go astray
SLOW = 200  # times the usual delay

Fault: TypeAlias = Callable[[World], float]


def cut(world: World) -> float:
    """A connection breaks, with all that is on its way; one side may notice late."""
    ends = world.network.open_ends()
    if not ends:
        return 0.0
    end = world.chance.choice(ends)
    notice = [world.chance.choice([0.0, 0.01, 2.0, 20.0]) for _ in range(2)]
    world.note(f"cut {end.socket.machine}-{end.other.socket.machine}, noticed after {notice}")
    world.network.cut(end, (notice[0], notice[1]))
    return max(notice)


def partition(world: World) -> float:
    """Nothing gets from one machine to another for a while, and nobody is told."""
    others = [*names(world), *world.machines]
    pair = ["broker", world.chance.choice(others)]
    world.chance.shuffle(pair)
    lasts = world.chance.choice([0.3, 3.0, 5.0, 12.0, 40.0])
    both = world.chance.random() < 0.5
    world.note(f"block {pair[0]} to {pair[1]} for {lasts}, both ways: {both}")
    world.network.block(pair[0], pair[1], world.now + lasts)
    if both:
        world.network.block(pair[1], pair[0], world.now + lasts)
    return lasts


def slow_down(world: World) -> float:
    """All messages take long for a while."""
    network, usual = world.network, world.network.lag_s
    lasts = world.chance.uniform(0.5, 10.0)
    world.note(f"slow for {lasts:.3f}")
    network.lag_s = usual * SLOW
    world.clock.after(lasts, partial(setattr, network, "lag_s", 0.001))
    return lasts


def tamper(world: World) -> float:
    """Single messages are lost, doubled or overtaken for a while."""
    network = world.network
    world.has_tampered = True
    lasts = world.chance.uniform(0.1, 3.0)
    kinds = world.chance.sample([Fate.LOSE, Fate.DOUBLE, Fate.OVERTAKE], 2)
    world.note(f"tamper for {lasts:.3f}: {kinds}")

    def fate(end: End, frames: list[Buffer]) -> Fate:
        hit = world.chance.random() < TAMPERED
        return world.chance.choice(kinds) if hit else Fate.ARRIVE

    network.tamper = fate
    world.clock.after(lasts, partial(setattr, network, "tamper", lambda end, frames: Fate.ARRIVE))
    return lasts


def kill(world: World) -> float:
    """A node dies, maybe with its machine; it is started again unless another one lives on."""
    machine = _victim(world)
    if machine is None:
        return 0.0
    world.kill_node(machine, is_machine_lost=world.chance.random() < 0.3)
    return _come_back(world, machine)


def stop(world: World) -> float:
    """A node is stopped orderly."""
    machine = _victim(world)
    if machine is None:
        return 0.0
    world.stop_node(machine)
    return _come_back(world, machine)


def pause(world: World) -> float:
    """A node falls silent and comes back, maybe after it was given up."""
    machine = _victim(world)
    if machine is None or machine.node is None:
        return 0.0
    lasts = world.chance.choice([0.1, 1.0, 4.0, 10.0, 35.0, 120.0])
    world.note(f"pause {machine.node.identity.instance} for {lasts}")
    world.longest_pause_s = max(world.longest_pause_s, lasts)
    machine.node.pause(world.now + lasts)
    return lasts


def pause_broker(world: World) -> float:
    """The broker does nothing for a while."""
    lasts = world.chance.choice([0.1, 2.0, 4.0, 15.0])
    world.note(f"pause broker for {lasts}")
    world.broker.pause(world.now + lasts)
    return lasts


def pause_client(world: World) -> float:
    """The client does nothing for a while, but less than would end its session."""
    lasts = world.chance.choice([0.1, 4.0, 20.0])
    live = world.live_clients()
    if live:
        client = live[0] if len(live) == 1 else world.chance.choice(live)
        world.note(f"pause {client.identity.instance} for {lasts}")
        client.pause(world.now + lasts)
    return lasts


def kill_job_process(world: World) -> float:
    """A job process is killed."""
    machine = _victim(world)
    if machine is None or machine.node is None:
        return 0.0
    workers = list(machine.node.jobs.workers.values())
    if workers:
        world.note(f"kill a job process of {machine.node.identity.instance}")
        world.killed_processes = True
        machine.node.jobs.crash(world.chance.choice(workers), "somebody")
    return 0.0


def fail_forks(world: World) -> float:
    """A node can't fork for a while."""
    machine = _victim(world)
    if machine is None or machine.node is None:
        return 0.0
    lasts = world.chance.uniform(0.1, 5.0)
    world.note(f"forks fail at {machine.node.identity.instance} for {lasts:.3f}")
    world.failing_forks = True
    machine.node.jobs.fork_fails = world.chance.choice([0.3, 1.0])
    world.clock.after(lasts, partial(setattr, machine.node.jobs, "fork_fails", 0.0))
    return lasts


FAULTS: list[Fault] = [
    cut,
    cut,
    partition,
    partition,
    slow_down,
    tamper,
    tamper,
    kill,
    kill,
    stop,
    pause,
    pause,
    pause_broker,
    pause_client,
    kill_job_process,
    fail_forks,
]


# -- of a broker with a journal, and of its clients ---------------------------------------------


def kill_broker(world: World) -> float:
    """The broker is killed at any moment, and started again some time later; maybe once more."""
    chance, life = world.chance, world.broker_lives
    point = chance.choice(["", *POINTS])
    within_s = chance.choice([0.01, 0.3, 2.0])
    down_s = chance.choice([0.0, 0.1, 1.0, 5.0, 20.0, 40.0])
    if point:
        world.broker.die_at(point, chance.choice([1, 1, 1, 2, 5, 20]))
        world.broker.wake()
    else:
        within_s = 0.0
    world.clock.after(within_s, partial(_kill_life, world, life, chance.random() < 0.2))
    world.clock.after(within_s + down_s, world.start_broker)
    again_s = 0.0
    if chance.random() < 0.3:
        again_s = chance.choice([0.0, 0.05, 1.0])
        back_s = within_s + down_s + again_s
        world.clock.after(back_s, partial(_kill_life, world, life + 1, False))
        world.clock.after(back_s, world.start_broker)
    return within_s + down_s + again_s


def _kill_life(world: World, life: int, is_machine_lost: bool) -> None:
    if world.broker_lives == life:
        world.kill_broker(is_machine_lost)


def kill_client(world: World) -> float:
    """A program is killed; later others take its clusters over, or nobody ever does."""
    chance, live = world.chance, world.live_clients()
    if not live:
        return 0.0
    client = chance.choice(live)
    world.kill_client(client)
    if chance.random() < 0.15:
        for wish in world.wishes.values():
            wish.is_orphan |= wish.is_taken and wish.client is client
        return 0.0
    return _take_over(world, client, chance.random() < 0.2)


def take_over(world: World) -> float:
    """Clusters are taken from a program that is there."""
    live = world.live_clients()
    if not live:
        return 0.0
    client = world.chance.choice(live)
    world.leave(client)
    return _take_over(world, client, True)


def _take_over(world: World, client: ClientProcess, force: bool) -> float:
    after_s = world.chance.choice([0.01, 0.5, 3.0, 12.0])
    patience_s = world.chance.choice([0.5, 3.0, 1000.0])
    world.clock.after(after_s, partial(world.rescue, client, force, patience_s))
    return after_s


def kill_rescuer(world: World) -> float:
    """Whoever takes something over is killed, too."""
    if world.rescuers:
        rescuer = world.chance.choice(world.rescuers)
        world.kill_rescuer(rescuer)
    return 0.0


def drain(world: World) -> float:
    """An operator drains a node, and maybe has it used again soon."""
    machine = world.chance.choice(list(world.machines.values()))
    world.operate(DRAIN, machine)
    if world.chance.random() < 0.5:
        after_s = world.chance.choice([0.0, 0.1, 3.0])
        world.clock.after(after_s, partial(world.operate, RESUME, machine))
    return 0.0


def fill_disk(world: World) -> float:
    """The disk of the broker is full for a while."""
    assert world.disk is not None
    lasts = world.chance.choice([0.5, 3.0, 10.0])
    world.note(f"the disk is full for {lasts}")
    world.disk.is_full = True
    world.clock.after(lasts, partial(setattr, world.disk, "is_full", False))
    return lasts


OF_BROKERS: list[Fault] = [
    *[kill_broker] * 10,
    *[kill_client] * 3,
    take_over,
    kill_rescuer,
    drain,
    fill_disk,
    pause_broker,
]


# -- of relays ------------------------------------------------------------------------------------


def end_relay(world: World) -> float:
    """A relay dies or is stopped, maybe with its machine; later it is started again."""
    outpost = world.chance.choice(list(world.outposts.values()))
    is_stopped, is_machine_lost = world.chance.random() < 0.2, world.chance.random() < 0.3
    world.end_relay(outpost, is_stopped, is_machine_lost)
    after = world.chance.choice([0.0, 0.05, 1.0, 8.0, 30.0])
    world.clock.after(after, partial(world.start_relay, outpost))
    return after


def pause_relay(world: World) -> float:
    """A relay does nothing for a while."""
    live = world.live_relays()
    lasts = world.chance.choice([0.1, 2.0, 4.0, 15.0, 40.0])
    if live:
        relay = world.chance.choice(live)
        world.note(f"pause {relay.identity.instance} for {lasts}")
        relay.pause(world.now + lasts)
    return lasts


def partition_relay(world: World) -> float:
    """Nothing gets from a relay to a neighbour for a while, or the other way, or both."""
    pair = list(world.chance.choice(trunks(world)))
    world.chance.shuffle(pair)
    lasts = world.chance.choice([0.3, 3.0, 5.0, 12.0, 40.0])
    both = world.chance.random() < 0.5
    world.note(f"block {pair[0]} to {pair[1]} for {lasts}, both ways: {both}")
    world.network.block(pair[0], pair[1], world.now + lasts)
    if both:
        world.network.block(pair[1], pair[0], world.now + lasts)
    return lasts


def slow_trunk(world: World) -> float:
    """A connection of a relay gets slow for a while."""
    one, other = world.chance.choice(trunks(world))
    rate, lasts = world.chance.choice([3e5, 1e6, 1e7]), world.chance.choice([3.0, 10.0, 30.0])
    world.note(f"only {rate} bytes per second between {one} and {other} for {lasts}")
    world.has_slowed = True
    for way in ((one, other), (other, one)):
        world.network.rates[way] = rate
        world.clock.after(lasts, partial(_hurry, world, way))
    return lasts


def _hurry(world: World, way: tuple[str, str]) -> None:
    world.network.rates.pop(way, None)


def trunks(world: World) -> list[tuple[str, str]]:
    """Return who is connected to a relay."""
    names = {outpost.address: outpost.name for outpost in world.outposts.values()}
    pairs = [(each.name, names.get(each.above, "broker")) for each in world.outposts.values()]
    behind = [each for each in world.machines.values() if each.outpost is not None]
    return pairs * 2 + [(each.name, each.outpost.name) for each in behind if each.outpost]


OF_RELAYS: list[Fault] = [
    *[end_relay] * 6,
    *[pause_relay] * 2,
    *[partition_relay] * 3,
    *[slow_trunk] * 3,
    cut,
    cut,
    tamper,
    tamper,
]


def strike(world: World) -> None:
    """Let one thing go wrong now."""
    faults = FAULTS if world.disk is None else FAULTS + OF_BROKERS
    fault = world.chance.choice(faults if not world.outposts else faults + OF_RELAYS)
    lasts = fault(world)
    if fault not in (pause_client, kill_job_process, fail_forks):
        world.lost_nodes = True  # leases are short, so any trouble in the network may end them
    world.healed_at = max(world.healed_at, world.now + lasts)


def names(world: World) -> list[str]:
    """Return the machines of all programs that use the broker."""
    return [each.identity.instance for each in (*world.live_clients(), *world.rescuers)]


def _victim(world: World) -> Machine | None:
    """Choose a machine with a living node."""
    living = [machine for machine in world.machines.values() if machine.node is not None]
    return world.chance.choice(living) if living else None


def _come_back(world: World, machine: Machine) -> float:
    """Start the node again, unless it may stay away; then say how long that takes."""
    if world.chance.random() < 0.4 and world.live_nodes():
        return 0.0
    after = world.chance.choice([0.05, 1.0, 8.0])
    world.clock.after(after, partial(world.start_node, machine))
    return after
