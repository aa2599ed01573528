"""What the agent knows: computations, the jobs that it holds, job processes.

Plain records. Only `core` changes them, and what it imports: `setups`, `handover`, `reports`,
`endings`, `files`, `watching`, `duty` and `telling`.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from dispy.protocol.fetching import Claim, Fetching
from dispy.protocol.messages import Code, JobResult, JobSpec, Prepare

from .effects import Effect
from .service import Hours, Phase

NEVER = float("inf")


class Task:
    """One attempt of a job at this node."""

    __slots__ = (
        "announced",
        "cancelled",
        "computation",
        "false_starts",
        "spec",
        "special",
        "worker",
    )

    def __init__(self, spec: JobSpec, computation: Computation) -> None:
        self.spec = spec
        self.computation = computation
        self.worker: Worker | None = None  # None while it waits
        self.cancelled = False
        self.announced = False  # the broker knows that it runs
        self.false_starts = 0  # job processes that died before they began it
        self.special: Special | None = None


@dataclass(eq=False)
class Special:
    """What few jobs need. They are given to a process one at a time."""

    limit_s: float = 0.0  # how long it may run; 0: no limit
    overdue: bool = False  # it ran longer, and is being ended
    off_duty: str = ""  # why it is being ended, if the node's service has ended
    claim: Claim | None = None  # its files
    follow: bool = False  # its output is to be told as soon as we know that it runs


class Stage(Enum):
    """How far a computation has got here."""

    FETCHING = "fetching"  # its files are on the way; there is no template yet
    PREPARING = "preparing"
    READY = "ready"
    RELEASING = "releasing"


class Cancelling(Enum):
    """How hard a job process has been asked to end its job."""

    NOT = 0
    INTERRUPTED = 1
    TERMINATED = 2
    KILLED = 3


@dataclass(eq=False)
class Worker:
    """A job process, from the wish to have one until it has been seen dead."""

    id: int
    computation: Computation
    max_tasks: int
    tasks: deque[Task] = field(default_factory=deque)  # given and not ended, in order
    given: int = 0  # tasks handed over in all, without those taken back
    ended: int = 0  # of these, tasks that have a result
    head_since: float = 0.0  # when the first of its tasks became the first
    cancelling: Cancelling = Cancelling.NOT
    next_step_at: float = NEVER  # of cancelling
    revoking: bool = False  # `Agent.revoked` is due
    outdated: bool = False  # it gets no more jobs: its code is old, or a signal is on its way

    @property
    def used_up(self) -> bool:
        """Whether it has had as many tasks as it takes; it ends by itself."""
        return bool(self.max_tasks) and self.given >= self.max_tasks

    @property
    def spent(self) -> bool:
        """Whether it may not be given anything more."""
        stopped = self.revoking or self.outdated or self.cancelling is not Cancelling.NOT
        return stopped or self.used_up


@dataclass(eq=False)
class Computation:
    """A cluster's function here, with the jobs that wait for a job process."""

    id: int
    prepare: Prepare
    cpus: int  # so many jobs at a time; 0: as many as the node has CPUs
    max_tasks: int  # of a job process; 0: no limit
    is_fresh: bool = False  # each job has a process of its own, which the job process forks
    stage: Stage = Stage.FETCHING
    tasks: dict[int, Task] = field(default_factory=dict)  # all that have no result, by seq
    waiting: dict[Task, None] = field(default_factory=dict)  # their files are on the way
    queue: deque[Task] = field(default_factory=deque)  # not given to a worker yet
    spares: deque[Worker] = field(default_factory=deque)  # have nothing to do, oldest first
    workers: dict[int, Worker] = field(default_factory=dict)
    has_special: bool = False  # some of its tasks are or were special
    run_s: float = -1.0  # how long a job takes, smoothed; below 0: not known
    in_turns: bool = False  # it is among those that have jobs to give
    tag: float = 0.0  # CPU time that it has had beside others, over its weight
    spawn_at: float = 0.0  # not before; grows after failures
    spawn_pause_s: float = 0.0
    claim: Claim | None = None  # its files
    setup_until: float = NEVER  # ... its set-up may take
    layers: list[Code] = field(default_factory=list)  # to be loaded when it is ready
    puts: dict[int, Claim] = field(default_factory=dict)  # files to be put there, by request
    again: Prepare | None = None  # asked for anew while it is being released
    keeps: bool = False  # while it is being released: its files stay


@dataclass(eq=False)
class Duty:
    """When and how much the node works."""

    hours: Hours | None = None  # None: around the clock
    serves: int = -1  # so many clusters, then it stops; negative: any number
    phase: Phase = Phase.OPEN
    look_at: float = 0.0  # when the time of day is wanted next
    served: set[tuple[str, int]] = field(default_factory=set)  # broker, computation; if it counts


@dataclass(eq=False)
class Node:
    """Everything that the agent knows."""

    cpus: int
    wall_offset_s: float
    fetching: Fetching
    broker: str = ""  # the peer that we serve
    computations: dict[int, Computation] = field(default_factory=dict)
    workers: dict[int, Worker] = field(default_factory=dict)
    busy: int = 0  # workers that have tasks
    youngest: float = 0.0  # when the last job began to run
    last_worker: int = 0
    turns: list[Computation] = field(default_factory=list)  # computations with a queue
    clock: float = 0.0  # the highest tag that any of them had when it got a CPU
    charged_at: float | None = None  # since then several want the CPUs; None: they don't
    results: dict[Computation, list[JobResult]] = field(default_factory=dict)
    held_since: float | None = None  # the oldest of these results
    again: list[Prepare] = field(default_factory=list)  # those before them are gone now
    kept: set[int] = field(default_factory=set)  # computations whose files wait for the next set-up
    leaving: bool = False  # it stops when all computations are gone
    duty: Duty = field(default_factory=Duty)
    effects: list[Effect] = field(default_factory=list)
    next_tick: float = NEVER

    def wake_at(self, when: float) -> None:
        """Have `Agent.tick` called by then."""
        if when < self.next_tick:
            self.next_tick = when
