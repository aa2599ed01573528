"""What the agent knows: computations, the jobs that it holds, job processes.

Plain records. Only `core.Agent` changes them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from dispy.protocol.messages import JobSpec, Prepare


class Task:
    """One attempt of a job at this node."""

    __slots__ = ("announced", "cancelled", "computation", "false_starts", "spec", "worker")

    def __init__(self, spec: JobSpec, computation: Computation) -> None:
        self.spec = spec
        self.computation = computation
        self.worker: Worker | None = None  # None while it waits in the computation's queue
        self.cancelled = False
        self.announced = False  # the broker knows that it runs
        self.false_starts = 0  # job processes that died before they began it


class Stage(Enum):
    """How far a computation has got here."""

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
    next_step_at: float = float("inf")  # of cancelling
    revoking: bool = False  # `Agent.revoked` is due

    @property
    def spent(self) -> bool:
        """Whether it may not be given anything more."""
        used_up = bool(self.max_tasks) and self.given >= self.max_tasks
        return used_up or self.revoking or self.cancelling is not Cancelling.NOT


@dataclass(eq=False)
class Computation:
    """A cluster's function here, with the jobs that wait for a job process."""

    id: int
    prepare: Prepare
    stage: Stage = Stage.PREPARING
    tasks: dict[int, Task] = field(default_factory=dict)  # all that have no result, by seq
    queue: deque[Task] = field(default_factory=deque)  # not given to a worker yet
    spares: deque[Worker] = field(default_factory=deque)  # have nothing to do, oldest first
    workers: dict[int, Worker] = field(default_factory=dict)
    run_s: float = -1.0  # how long a job takes, smoothed; below 0: not known
    spawn_at: float = 0.0  # not before; grows after failures
    spawn_pause_s: float = 0.0
    again: Prepare | None = None  # asked for anew while it is being released
