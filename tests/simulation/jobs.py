"""Made-up job processes in place of `node.launcher`, with the same methods and events.

What a job does and how it ends is a `Course`, which the world draws from the seed. Begun and
ended jobs are noted in a `Diary`, so that a test can say what really happened at the nodes.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TypeAlias

from dispy.node.launcher import (
    Event,
    Outcomes,
    TemplateFailed,
    TemplateGone,
    TemplateReady,
    WorkerExited,
)
from dispy.protocol.messages import FINISHED, TERMINATED, JobResult, JobSpec, Large
from dispy.protocol.payload import pack_result

from .clock import Clock


class End(Enum):
    """How a job ends when nothing happens to it."""

    RETURN = "return"
    RAISE = "raise"
    CRASH = "crash"  # and its process with it


@dataclass(frozen=True)
class Course:
    """What a job does."""

    run_s: float
    end: End = End.RETURN
    heeds_interrupt: bool = True
    heeds_terminate: bool = True


Page: TypeAlias = dict[tuple[str, int], list[tuple[str, int]]]


@dataclass
class Diary:
    """What has happened to jobs, by (cluster's name, seq): the node's life and the attempt."""

    begun: Page = field(default_factory=dict)
    ended: Page = field(default_factory=dict)


def answer(payload: bytes) -> bytes:
    """The function that all jobs compute."""
    return b"f(" + payload + b")"


def returned(spec: JobSpec) -> tuple[bytes, list[Large]]:
    """What a job that returns sends back: payloads beside it come back as they are."""
    if not spec.payload:
        return b"", [Large(spec.parts[0].size, list(spec.parts[0].chunks))]
    return pack_result(answer(spec.payload), b"", b"", ""), []


class Worker:
    """A job process."""

    def __init__(self, number: int, computation: int, max_tasks: int) -> None:
        self.number = number
        self.computation = computation
        self.max_tasks = max_tasks
        self.waiting: deque[JobSpec] = deque()
        self.running: JobSpec | None = None
        self.course = Course(0.0)
        self.since = 0.0
        self.given = self.begun = self.ended = 0
        self.is_ready = False
        self.is_alive = True
        self.turn = 0  # so that what was planned for one job never happens to another


class Jobs:
    """All job processes of one life of a node."""

    def __init__(
        self,
        clock: Clock,
        chance: random.Random,
        life: str,
        diary: Diary,
        course_of: Callable[[str, int], Course],
        on_event: Callable[[], None],
    ) -> None:
        self.fork_fails = 0.0  # how often
        self.setup_fails: set[str] = set()  # names of computations
        self.workers: dict[int, Worker] = {}
        self._clock = clock
        self._chance = chance
        self._life = life
        self._diary = diary
        self._course_of = course_of
        self._on_event = on_event
        self._templates: dict[int, bool] = {}  # computation: whether it was released
        self._names: dict[int, str] = {}
        self._events: list[Event] = []
        self._is_alive = True

    def take_events(self) -> list[Event]:
        """Return what has happened since the last call, in order."""
        events, self._events = self._events, []
        return events

    def die(self) -> None:
        """The node is gone, and all processes with it."""
        self._is_alive = False
        for worker in self.workers.values():
            worker.is_alive = False

    # -- computations ----------------------------------------------------------------------

    def prepare(self, computation: int, name: str, code: JobSpec) -> None:
        """Load a computation."""
        assert computation not in self._templates
        self._templates[computation] = False
        self._names[computation] = name
        event: TemplateReady | TemplateFailed = TemplateReady(computation)
        if name in self.setup_fails:
            event = TemplateFailed(computation, "setup raised an exception")
        self._clock.after(self._chance.uniform(0.01, 0.2), partial(self._loaded, event))

    def _loaded(self, event: TemplateReady | TemplateFailed) -> None:
        if self._templates.get(event.computation) is not False:
            return
        if isinstance(event, TemplateFailed):
            del self._templates[event.computation]
        self._tell(event)

    def release(self, computation: int) -> None:
        """End all of a computation. No other event of it comes after this."""
        if computation not in self._templates:
            self._tell(TemplateGone(computation))
            return
        self._templates[computation] = True
        for worker in list(self.workers.values()):
            if worker.computation == computation:
                self._bury(worker)
        self._clock.after(self._chance.uniform(0.001, 0.1), partial(self._gone, computation))

    def _gone(self, computation: int) -> None:
        del self._templates[computation]
        self._tell(TemplateGone(computation))

    # -- workers ---------------------------------------------------------------------------

    def spawn(self, computation: int, number: int, max_tasks: int) -> None:
        """Fork a job process."""
        if self._templates.get(computation) is not False:
            self._tell(WorkerExited(number, 0, "its computation is not running"))
            return
        self.workers[number] = worker = Worker(number, computation, max_tasks)
        born = self._fail if self._chance.random() < self.fork_fails else self._ready
        self._clock.after(self._chance.uniform(0.0005, 0.005), partial(born, worker))

    def _fail(self, worker: Worker) -> None:
        if worker.is_alive:
            self._bury(worker)
            self._tell(WorkerExited(worker.number, 0, "a job process could not be started"))

    def _ready(self, worker: Worker) -> None:
        worker.is_ready = True
        self._next(worker)

    def give(self, number: int, jobs: list[JobSpec]) -> None:
        """Hand jobs over; those for a dead worker vanish."""
        worker = self.workers.get(number)
        if worker is not None:
            worker.given += len(jobs)
            worker.waiting.extend(jobs)
            self._next(worker)

    def revoke(self, number: int) -> int:
        """Take back what has not begun; from a process for one job nothing."""
        worker = self.workers.get(number)
        if worker is None or worker.max_tasks == 1:
            return 0
        count = len(worker.waiting)
        worker.waiting.clear()
        worker.given -= count
        return count

    def interrupt(self, number: int) -> None:
        """SIGINT: the job raises KeyboardInterrupt, if it heeds that."""
        worker = self.workers.get(number)
        if worker is not None and worker.running is not None and worker.course.heeds_interrupt:
            worker.course = Course(0.0, End.RAISE)
            self._plan_end(worker, self._chance.uniform(0.0, 0.05))

    def terminate(self, number: int) -> None:
        """SIGTERM."""
        worker = self.workers.get(number)
        if worker is not None and worker.course.heeds_terminate:
            self._clock.after(0.002, partial(self.crash, worker, "SIGTERM"))

    def kill(self, number: int) -> None:
        """SIGKILL."""
        worker = self.workers.get(number)
        if worker is not None:
            self._clock.after(0.002, partial(self.crash, worker, "SIGKILL"))

    def crash(self, worker: Worker, reason: str) -> None:
        """The process dies, with whatever it is doing."""
        if worker.is_alive:
            self._bury(worker)
            # Nobody can say of a process for one job whether it had begun it.
            started = worker.given if worker.max_tasks == 1 else worker.begun
            self._tell(WorkerExited(worker.number, started, f"killed by {reason}"))

    # -- jobs ------------------------------------------------------------------------------

    def _next(self, worker: Worker) -> None:
        idle = worker.is_ready and worker.is_alive and worker.running is None
        if idle and worker.waiting:
            spec = worker.running = worker.waiting.popleft()
            worker.begun += 1
            worker.since = self._clock.now
            worker.course = self._course_of(self._names[worker.computation], spec.seq)
            self._note(self._diary.begun, worker, spec)
            self._plan_end(worker, worker.course.run_s)

    def _plan_end(self, worker: Worker, delay_s: float) -> None:
        worker.turn += 1
        self._clock.after(delay_s, partial(self._end, worker, worker.turn))

    def _end(self, worker: Worker, turn: int) -> None:
        if not worker.is_alive or turn != worker.turn:
            return
        spec, course = worker.running, worker.course
        assert spec is not None
        if course.end is End.CRASH:
            self.crash(worker, "SIGSEGV")
            return
        worker.running = None
        worker.turn += 1
        worker.ended += 1
        result = JobResult(spec.seq, spec.attempt, FINISHED, worker.since, self._clock.now, b"")
        if course.end is End.RETURN:
            result.payload, result.parts = returned(spec)
        else:
            result.status, result.payload = TERMINATED, pack_result(b"", b"", b"", "raised")
        self._note(self._diary.ended, worker, spec)
        self._tell(Outcomes(worker.number, [result]))
        if worker.max_tasks and worker.begun == worker.max_tasks:
            self._clock.after(0.001, partial(self._exit, worker, result))
        else:
            self._next(worker)

    def _exit(self, worker: Worker, last: JobResult) -> None:
        """A process that has done all it may ends; some tell their last result twice."""
        if worker.is_alive:
            if self._chance.random() < 0.1:
                self._tell(Outcomes(worker.number, [last]))
            self._bury(worker)
            self._tell(WorkerExited(worker.number, worker.begun, ""))

    def _bury(self, worker: Worker) -> None:
        worker.is_alive = False
        del self.workers[worker.number]

    def _note(self, page: Page, worker: Worker, spec: JobSpec) -> None:
        name = self._names[worker.computation]
        page.setdefault((name, spec.seq), []).append((self._life, spec.attempt))

    def _tell(self, event: Event) -> None:
        if self._is_alive:
            self._events.append(event)
            self._on_event()
