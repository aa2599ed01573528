"""Each message of a run without faults lost, doubled or overtaken by the next (scenario A5).

Systematic instead of random: the run has every kind of message in it, and each of its
messages has its turn (with DISPY_STRIDE=1; by default every seventh). Another test hands
messages twice to the cores themselves, which must not mind, since it is their operations that
are idempotent, not only the links between them.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from functools import partial
from typing import Any, get_args

import pytest

from dispy.broker.settings import Settings
from dispy.protocol import messages
from dispy.protocol.events import Event, Received
from dispy.protocol.messages import (
    DRAIN,
    SET_CPUS,
    Buffer,
    Envelope,
    JobOptions,
    NodeTrouble,
    Released,
    Service,
    Withdraw,
)
from dispy.protocol.wire import Codec

from .broker import BrokerProcess
from .files import FILES
from .jobs import HANG_S, Course
from .network import End, Fate
from .processes import ClientProcess, NodeProcess, Process
from .scenarios import from_seed, play
from .world import World

REPEATED = 0.3  # of all messages
# They need a node that fails to set up, one that is slower than another, or one with hours.
RARE = {NodeTrouble, Withdraw, Service}
# So few of the messages have their turn, and at a shared broker; 1: each.
STRIDE = int(os.environ.get("DISPY_STRIDE", "7"))
SHARED_STRIDE = 9 if STRIDE > 1 else 1


def happy_world() -> World:
    """Make a small world in which much happens in a short time, and nothing goes wrong."""
    world = World("every message")
    for number in range(2):
        world.start_node(world.add_machine(2, dials=bool(number)))
    world.lost_nodes = True  # a message astray may cost more than a lease
    first = world.open_cluster(max_tasks=0, pulse_s=0.5, grace_s=0.1, files=FILES[1:2], asks=True)
    second = world.open_cluster(reentrant=True, grace_s=0.1)
    world.submit(first, [Course(0.01)] * 20 + [Course(HANG_S), Course(0.2)])
    world.submit(second, [Course(0.05)] * 300)
    world.submit(first, [Course(0.2, records=3, options=JobOptions(follow=True))])
    world.submit(first, [Course(0.01, fails=1, options=JobOptions(retries=1, files=FILES[:3]))])
    later(world, 0.2, world.define, first)
    later(world, 0.2, world.submit, first, [Course(0.4)] * 2)
    later(world, 0.3, world.cancel, first, 21)
    later(world, 0.3, world.follow, first, 25)
    later(world, 0.35, world.client.explain, first, 25)
    later(world, 0.35, world.send_file, first, 1, FILES[1])
    later(world, 0.4, world.request, second, SET_CPUS, 1, cpus=1)
    later(world, 0.6, world.stop_node, world.machines["node2"])
    later(world, 0.7, world.close_cluster, second)
    return world


def happy_shared_world() -> World:
    """Make a small world with a shared broker, in which a program loses a cluster to another."""
    world = World("every message of a shared broker", Settings(durable=True, shared=True))
    assert world.disk is not None
    for number in range(2):
        world.start_node(world.add_machine(2, dials=bool(number)))
    world.lost_nodes = True
    first = world.open_cluster(max_tasks=0, pulse_s=0.5, grace_s=0.1)
    second = world.open_cluster(client=world.add_client(), grace_s=0.1)
    world.submit(first, [Course(0.05)] * 20)
    world.submit(second, [Course(0.05)] * 20 + [Course(0.5)])
    later(world, 0.3, world.operate, DRAIN, world.machines["node1"])
    later(world, 0.3, setattr, world.disk, "is_full", True)
    later(world, 0.35, world.leave, world.clients[1])
    later(world, 0.35, world.rescue, world.clients[1], True, 1000.0)
    later(world, 1.4, world.submit, first, [Course(0.05)] * 5)
    later(world, 1.6, setattr, world.disk, "is_full", False)
    return world


def later(
    world: World, when: float, act: Callable[..., None], *arguments: Any, **more: Any
) -> None:
    """Plan what a user does."""
    world.clock.at(when, partial(act, *arguments, **more))


UNTIL_S = {happy_world: 1.0, happy_shared_world: 1.7}  # when the last thing is planned


def run_with(make: Callable[[], World], turn: int, fate: Fate) -> int:
    """Let this happen to one message of the run; return how many there are."""
    world = make()
    count = 0

    def tamper(end: End, frames: list[Buffer]) -> Fate:
        nonlocal count
        count += 1
        return fate if count == turn + 1 else Fate.ARRIVE

    world.network.tamper = tamper
    world.has_tampered = True
    play(world, until=UNTIL_S[make])
    return count


def test_the_run_has_every_kind_of_message() -> None:
    codec = Codec()
    seen: set[type] = set()

    def watch(end: End, frames: list[Buffer]) -> None:
        frame, _ = codec.decode(frames[0])
        if isinstance(frame, Envelope):
            seen.update(map(type, frame.messages))

    for make, until_s in UNTIL_S.items():
        world = make()
        world.network.watch = watch
        play(world, until_s)
    assert set(get_args(messages.Body)) - seen <= RARE


@pytest.mark.parametrize("fate", [Fate.LOSE, Fate.DOUBLE, Fate.OVERTAKE])
def test_any_message_may_go_astray(fate: Fate) -> None:
    all_go_astray(happy_world, fate, STRIDE)


@pytest.mark.parametrize("fate", [Fate.LOSE, Fate.DOUBLE, Fate.OVERTAKE])
def test_any_message_at_a_shared_broker_may_go_astray(fate: Fate) -> None:
    all_go_astray(happy_shared_world, fate, SHARED_STRIDE)


def all_go_astray(make: Callable[[], World], fate: Fate, stride: int) -> None:
    """Let this happen to each message of a run in turn."""
    count = run_with(make, -1, fate)
    assert count > 50
    for turn in range(0, count, stride):
        try:
            run_with(make, turn, fate)
        except AssertionError as error:
            raise AssertionError(f"message {turn}, {fate.value}: {error}") from error


Handler = Callable[[Any, Event, float], None]


def twice(on_event: Handler, chance: random.Random) -> Handler:
    """Hand messages to a core twice."""

    def handle(process: Process, event: Event, now: float) -> None:
        on_event(process, event, now)
        if not isinstance(event, Received) or chance.random() >= REPEATED:
            return
        # After the last `Released` a node may be none of the broker's any more.
        if not isinstance(event.message, Released):
            on_event(process, event, now)

    return handle


@pytest.mark.parametrize("seed", range(40))
def test_messages_may_reach_a_core_twice(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    for kind in (BrokerProcess, NodeProcess, ClientProcess):
        monkeypatch.setattr(kind, "on_event", twice(kind.on_event, chance))
    play(from_seed(seed, faults=0))
