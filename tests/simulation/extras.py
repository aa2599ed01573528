"""What only some clusters do: files, limits, priorities, requests about nodes, and so on.

Each is drawn with a modest probability, from a chance of its own: what else happens in a seed is
the same with and without it.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias

import msgspec

from dispy.protocol.messages import (
    ALLOCATE,
    CLOSE,
    DEALLOCATE,
    DISCOVER,
    RESETUP,
    SET_CPUS,
    FileSpec,
    JobOptions,
)

from .files import FILES
from .jobs import HANG_S, Course, End
from .world import World

PLAIN = 0.5  # of all clusters have nothing of this
FEATURES_MAX = 3
UNTIL_S = 8.0  # when users have asked for the last thing
SETUP_TIMEOUT_S = 2.0
NOWHERE = 999_999  # no node has this number

Change: TypeAlias = Callable[[random.Random, Course], Course]


def with_options(course: Course, **more: Any) -> Course:
    """Let a job ask for something more."""
    options = course.options or JobOptions()
    return replace(course, options=msgspec.structs.replace(options, **more))


# -- jobs -------------------------------------------------------------------------------------


def with_files(chance: random.Random, course: Course) -> Course:
    """It needs files."""
    weights = [8, 8, 4, 4, 1, 1]
    return with_options(course, files=[each for each in set_of(chance, weights)])


def set_of(chance: random.Random, weights: list[int]) -> list[FileSpec]:
    """Draw some files, large ones seldom."""
    drawn = chance.choices(range(len(FILES)), weights, k=chance.randint(1, 3))
    return [FILES[number] for number in sorted(set(drawn))]


def with_records(chance: random.Random, course: Course) -> Course:
    """It tells provisional results."""
    return replace(course, records=chance.choice([1, 3, 20]))


def with_follower(chance: random.Random, course: Course) -> Course:
    """Its output is followed from the beginning."""
    return with_options(replace(course, run_s=course.run_s + 0.2), follow=True)


def with_limit(chance: random.Random, course: Course) -> Course:
    """It may not run for long; some would never end."""
    if course.records or chance.random() < 0.9:
        return with_options(course, timeout=30.0)
    course = replace(course, run_s=HANG_S, end=End.RETURN)
    return with_options(course, timeout=chance.choice([0.05, 0.5]))


def with_retries(chance: random.Random, course: Course) -> Course:
    """It is tried again when it fails, which some do."""
    course = replace(course, fails=chance.choice([0, 1, 1, 2, 4]))
    return with_options(course, retries=chance.choice([1, 2, 3]))


def with_priority(chance: random.Random, course: Course) -> Course:
    """It is more urgent than others, or less."""
    return with_options(course, priority=chance.choice([-1, 1, 5]))


CHANGES: dict[str, tuple[float, Change]] = {  # how many of the jobs
    "files of jobs": (0.1, with_files),
    "records": (0.1, with_records),
    "followed": (0.05, with_follower),
    "retries": (0.2, with_retries),
    "limits": (0.1, with_limit),
    "priorities": (0.3, with_priority),
}


# -- what users do ----------------------------------------------------------------------------


def often(chance: random.Random, count: int) -> list[float]:
    """Draw some times."""
    return [chance.uniform(0.0, UNTIL_S) for _ in range(count)]


def define(world: World, chance: random.Random, number: int) -> None:
    """Meet classes in arguments that nodes don't know, and go on submitting."""
    for when in often(chance, 3):
        world.clock.at(when, partial(world.define, number))
        courses = [Course(chance.uniform(0.001, 0.2)) for _ in range(10)]
        world.clock.at(when, partial(world.submit, number, courses))


def follow(world: World, chance: random.Random, number: int) -> None:
    """Follow jobs, ended or not."""
    for when in often(chance, 5):
        world.clock.at(when, partial(_follow_one, world, chance, number))


def _follow_one(world: World, chance: random.Random, number: int) -> None:
    seqs = list(world.wishes[number].courses)
    if seqs:
        world.follow(number, chance.choice(seqs))


def pin(world: World, chance: random.Random, number: int) -> None:
    """Submit jobs for one node."""
    for when in often(chance, 3):
        world.clock.at(when, partial(_pin_some, world, chance, number))


def _pin_some(world: World, chance: random.Random, number: int) -> None:
    node = a_node(world, chance, number)
    run_s = chance.choice([0.002, 0.1, 0.5])
    course = with_options(Course(run_s), node=node, priority=chance.choice([0, 0, 1]))
    world.submit(number, [course] * chance.choice([1, 10, 20]))


def request(world: World, chance: random.Random, number: int) -> None:
    """Ask for all kinds of things about nodes."""
    for when in often(chance, chance.randint(2, 6)):
        world.clock.at(when, partial(_request_one, world, chance, number))


def _request_one(world: World, chance: random.Random, number: int) -> None:
    specs = world.wishes[number].opening.nodes
    node = a_node(world, chance, number)
    action = chance.choice([ALLOCATE, DISCOVER, DEALLOCATE, CLOSE, RESETUP, RESETUP, SET_CPUS])
    if action in (CLOSE, RESETUP):
        world.request(number, action, node, terminate=chance.random() < 0.5)
    elif action == SET_CPUS:
        world.request(number, action, node, cpus=chance.choice([-9, -1, 0, 1, 2]))
    elif action == DISCOVER or (action == ALLOCATE and chance.random() < 0.5):
        world.request(number, action, nodes=specs)
    else:
        world.request(number, action, node)


def ask(world: World, chance: random.Random, number: int) -> None:
    """Ask about jobs, and send files."""
    for when in often(chance, 4):
        world.clock.at(when, partial(_explain_one, world, chance, number))
        world.clock.at(when, partial(_send_one, world, chance, number))


def _explain_one(world: World, chance: random.Random, number: int) -> None:
    seqs = list(world.wishes[number].courses)
    if seqs:
        world.wishes[number].client.explain(number, chance.choice(seqs))


def _send_one(world: World, chance: random.Random, number: int) -> None:
    world.send_file(number, a_node(world, chance, number), chance.choice(FILES))


def a_node(world: World, chance: random.Random, number: int) -> int:
    """Draw one that the user has heard of, rarely another."""
    met = list(world.wishes[number].record.met)
    return chance.choice(met) if met and chance.random() < 0.95 else NOWHERE


ACTS: dict[str, Callable[[World, random.Random, int], None]] = {
    "layers": define,
    "followed": follow,
    "pinned": pin,
    "requests": request,
    "questions": ask,
}
OPENINGS = ["files", "asks", "hanging"]
FEATURES = sorted({*CHANGES, *ACTS, *OPENINGS})


class Extras:
    """What one cluster does that others don't."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.features: list[str] = []
        if chance.random() >= PLAIN:
            self.features = sorted(chance.sample(FEATURES, chance.randint(1, FEATURES_MAX)))

    def opening(self) -> dict[str, Any]:
        """Return what is said when the cluster is opened."""
        more: dict[str, Any] = {}
        if "files" in self.features:
            more["files"] = set_of(self.chance, [8, 8, 4, 4, 2, 2])
        if "asks" in self.features:
            more["asks"] = True
        if "hanging" in self.features:
            more["setup_timeout_s"] = SETUP_TIMEOUT_S
        return more

    def change(self, courses: list[Course]) -> list[Course]:
        """Let some of the jobs do more."""
        for name, (part, change) in CHANGES.items():
            if name in self.features:
                courses = [
                    change(self.chance, each) if self.chance.random() < part else each
                    for each in courses
                ]
        return courses

    def plan(self, world: World, number: int) -> None:
        """Have the user do more."""
        if self.features:
            world.note(f"cluster {number} has {', '.join(self.features)}")
        wish = world.wishes[number]
        if "hanging" in self.features:
            machine = self.chance.choice(list(world.machines.values()))
            machine.setup_hangs.add(wish.name)
        if "asks" in self.features:
            wish.offers_wanted = False
            world.clock.at(UNTIL_S, partial(setattr, wish, "offers_wanted", True))
        if self.chance.random() < 0.1:  # matters when files are asked for
            wish.client.unreadable.add((number, self.chance.choice(FILES).digest))
        for name, act in ACTS.items():
            if name in self.features:
                act(world, self.chance, number)
