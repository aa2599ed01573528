"""Each message of a run without faults lost, doubled or overtaken by the next (scenario A5).

Systematic instead of random: the run has every kind of message in it, and each of its
messages has its turn. Another test hands messages twice to the cores themselves, which must
not mind, since it is their operations that are idempotent, not only the links between them.
"""

from __future__ import annotations

import random
from functools import partial
from typing import get_args

import pytest

from dispy.protocol import messages
from dispy.protocol.exchange import Event, Received
from dispy.protocol.messages import Buffer, Envelope, Inventory, NodeTrouble, Returned, Withdraw
from dispy.protocol.wire import Codec

from .jobs import Course
from .network import End, Fate
from .processes import Process
from .scenarios import HANG_S, from_seed, play
from .world import World

REPEATED = 0.3  # of all messages
# They occur only after a fault, or only when nodes differ in speed.
RARE = {Inventory, NodeTrouble, Withdraw}


def happy_world() -> World:
    """Make a small world in which much happens in a short time, and nothing goes wrong."""
    world = World("every message")
    for number in range(2):
        world.start_node(world.add_machine(2, dials=bool(number)))
    world.lost_nodes = True  # a message astray may cost more than a lease
    first = world.open_cluster(max_tasks=0, pulse_s=0.2, grace_s=0.1)
    second = world.open_cluster(reentrant=True, grace_s=0.1)
    world.submit(first, [Course(0.01)] * 20 + [Course(HANG_S), Course(0.2)])
    world.submit(second, [Course(0.05)] * 300)
    world.clock.at(0.3, partial(world.cancel, first, 21))
    world.clock.at(0.6, partial(world.stop_node, world.machines["node2"]))
    world.clock.at(0.8, partial(world.close_cluster, second))
    return world


def run_with(turn: int, fate: Fate) -> int:
    """Let this happen to one message of the run; return how many there are."""
    world = happy_world()
    count = 0

    def tamper(end: End, frames: list[Buffer]) -> Fate:
        nonlocal count
        count += 1
        return fate if count == turn + 1 else Fate.ARRIVE

    world.network.tamper = tamper
    world.has_tampered = True
    play(world, until=2.0)
    return count


def test_the_run_has_every_kind_of_message() -> None:
    world, seen, codec = happy_world(), set(), Codec()

    def watch(end: End, frames: list[Buffer]) -> None:
        frame, _ = codec.decode(frames[0])
        if isinstance(frame, Envelope):
            seen.update(map(type, frame.messages))

    world.network.watch = watch
    play(world, until=2.0)
    assert set(get_args(messages.Body)) - seen <= RARE


@pytest.mark.parametrize("fate", [Fate.LOSE, Fate.DOUBLE, Fate.OVERTAKE])
def test_any_message_may_go_astray(fate: Fate) -> None:
    count = run_with(-1, fate)
    assert count > 50
    for turn in range(count):
        try:
            run_with(turn, fate)
        except AssertionError as error:
            raise AssertionError(f"message {turn}, {fate.value}: {error}") from error


def repeat(process: Process, chance: random.Random) -> None:
    """Hand messages twice to the core of a process."""
    on_event = process.on_event

    def twice(event: Event, now: float) -> None:
        on_event(event, now)
        if isinstance(event, Received) and chance.random() < REPEATED:
            # A job once returned on its own is not the same as twice.
            on_event(event, now)

    process.on_event = twice  # type: ignore[method-assign]


@pytest.mark.parametrize("seed", range(40))
def test_messages_may_reach_a_core_twice(seed: int) -> None:
    world = from_seed(seed, faults=0)
    for process in world.processes():
        repeat(process, random.Random(seed))
    start_node = world.start_node

    def start_repeating(machine: object) -> None:
        start_node(machine)  # type: ignore[arg-type]

    play(world)
