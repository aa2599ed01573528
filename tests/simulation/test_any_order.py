"""Whatever a user and the world do, in whatever order: the promises hold (scenario A4).

Hypothesis looks for the shortest order in which they don't. The model is what the user has
asked for (`world.Wish`) and what `promises` allows after that. ``DISPY_EXAMPLES`` says how many
orders are tried.
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from .faults import cut, kill_job_process, partition, pause
from .jobs import HANG_S, Course, End
from .scenarios import play
from .world import Machine, World

EXAMPLES = int(os.environ.get("DISPY_EXAMPLES", "100"))
STEPS = 25
MACHINES_MAX = 4
CLUSTERS_MAX = 3

COURSES = st.sampled_from(
    [
        Course(0.001),
        Course(0.05),
        Course(0.6),
        Course(0.02, End.RAISE),
        Course(0.02, End.CRASH),
    ]
)


class AnyOrder(RuleBasedStateMachine):
    """Drives a world; at the end all faults are over and everything must have ended well."""

    @initialize(seed=st.integers(0, 1000), local=st.booleans())
    def begin(self, seed: int, local: bool) -> None:
        self.world = World(seed)
        self.world.network.is_local = local
        self.world.start_node(self.world.add_machine(2, dials=False))

    def machine(self, number: int) -> Machine:
        machines = list(self.world.machines.values())
        return machines[number % len(machines)]

    def cluster(self, number: int) -> int:
        return 1 + number % len(self.world.wishes)

    @precondition(lambda self: len(self.world.machines) < MACHINES_MAX)
    @rule(cpus=st.integers(1, 3))
    def add_node(self, cpus: int) -> None:
        # It dials, since no cluster that is open asks for it.
        self.world.start_node(self.world.add_machine(cpus, dials=True))

    @precondition(lambda self: len(self.world.wishes) < CLUSTERS_MAX)
    @rule(reentrant=st.booleans(), max_tasks=st.sampled_from([0, 1, 3]))
    def open_cluster(self, reentrant: bool, max_tasks: int) -> None:
        self.world.open_cluster(reentrant, max_tasks, pulse_s=0.5, grace_s=0.1)

    @precondition(lambda self: self.world.wishes)
    @rule(number=st.integers(0, 9), course=COURSES, count=st.sampled_from([1, 3, 40]))
    def submit(self, number: int, course: Course, count: int) -> None:
        self.world.submit(self.cluster(number), [course] * count)

    @precondition(lambda self: self.world.wishes)
    @rule(number=st.integers(0, 9), heeds=st.booleans())
    def submit_endless_and_cancel(self, number: int, heeds: bool) -> None:
        cluster = self.cluster(number)
        if not self.world.wishes[cluster].is_closing:
            self.world.submit(cluster, [Course(HANG_S, End.RETURN, heeds)])
            self.world.run(0.3)
            self.world.cancel(cluster, len(self.world.wishes[cluster].courses))

    @precondition(lambda self: any(wish.courses for wish in self.world.wishes.values()))
    @rule(number=st.integers(0, 9), job=st.integers(0, 999))
    def cancel(self, number: int, job: int) -> None:
        cluster = self.cluster(number)
        courses = self.world.wishes[cluster].courses
        if courses:
            self.world.cancel(cluster, 1 + job % len(courses))

    @precondition(lambda self: self.world.wishes)
    @rule(number=st.integers(0, 9))
    def close_cluster(self, number: int) -> None:
        self.world.close_cluster(self.cluster(number))

    @rule(number=st.integers(0, 9), again=st.booleans())
    def kill_node(self, number: int, again: bool) -> None:
        machine = self.machine(number)
        self.world.kill_node(machine)
        if again:
            self.world.start_node(machine)

    @rule(number=st.integers(0, 9))
    def stop_node(self, number: int) -> None:
        self.world.stop_node(self.machine(number))

    @rule(number=st.integers(0, 9))
    def start_node(self, number: int) -> None:
        self.world.start_node(self.machine(number))

    @rule(fault=st.sampled_from([cut, partition, pause, kill_job_process]))
    def strike(self, fault: object) -> None:
        assert callable(fault)
        world = self.world
        world.healed_at = max(world.healed_at, world.now + fault(world))

    @rule(seconds=st.sampled_from([0.001, 0.03, 0.2, 1.0, 4.0]))
    def let_time_pass(self, seconds: float) -> None:
        self.world.run(seconds)

    def teardown(self) -> None:
        if not self.world.wishes:
            return
        for machine in self.world.machines.values():
            self.world.start_node(machine)  # somebody must be there to run what waits
        play(self.world, until=0.0)


AnyOrder.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=STEPS,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
TestAnyOrder = AnyOrder.TestCase
