"""Made-up job processes in place of `node.launcher` and its workers: same methods, same events.

What a job does and how it ends is a `Course`, which the world draws from the seed. Begun and
ended jobs are noted in a `Diary`, so that a test can say what really happened at the nodes.
What must hold whenever a job begins is asserted here: its files are there, and its process was
forked after the code was known that it needs.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import TypeAlias

from dispy.node.conversation import Conversation
from dispy.node.jobwire import OWN_AHEAD
from dispy.node.processevents import (
    Event,
    FilePlaced,
    Outcomes,
    Recorded,
    TemplateFailed,
    TemplateGone,
    TemplateReady,
    WorkerExited,
)
from dispy.protocol.messages import (
    FINISHED,
    PROVISIONAL,
    TERMINATED,
    Code,
    FileSpec,
    JobOptions,
    JobRecord,
    JobResult,
    JobSpec,
    Large,
    Prepare,
)
from dispy.protocol.payload import pack_result

from .clock import Clock
from .files import Store

HANG_S = 1e6  # a job that ends only when it is made to
LOOK_S = 0.1  # how often the output of a job is looked at


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
    records: int = 0  # provisional results that it tells on its way
    fails: int = 0  # attempts that raise before one goes its way
    layers: int = 0  # so many layers of code must be known to its process
    options: JobOptions | None = None


Page: TypeAlias = dict[tuple[str, int], list[tuple[str, int]]]


@dataclass
class Diary:
    """What has happened to jobs, by (cluster's name, seq): the node's life and the attempt."""

    begun: Page = field(default_factory=dict)
    ended: Page = field(default_factory=dict)
    # How long attempts ran, by the same key, in seconds.
    lasted: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    # How much an attempt has said, by name, seq and attempt.
    said: dict[tuple[str, int, int], int] = field(default_factory=dict)


def answer(payload: bytes) -> bytes:
    """The function that all jobs compute."""
    return b"f(" + payload + b")"


def returned(spec: JobSpec) -> tuple[bytes, list[Large]]:
    """What a job that returns sends back: payloads beside it come back as they are."""
    if not spec.payload:
        return b"", [Large(spec.parts[0].size, list(spec.parts[0].chunks))]
    return pack_result(answer(spec.payload), b"", b"", ""), []


class Worker:
    """A job process, which knows the layers of code that were there when it was forked."""

    def __init__(
        self, number: int, computation: int, max_tasks: int, layers: frozenset[int]
    ) -> None:
        self.number = number
        self.computation = computation
        self.max_tasks = max_tasks
        self.layers = layers
        self.waiting: deque[JobSpec] = deque()
        self.running: JobSpec | None = None
        self.course = Course(0.0)
        self.since = 0.0
        self.given = self.begun = self.ended = 0
        self.is_ready = False
        self.is_alive = True
        self.turn = 0  # so that what was planned for one job never happens to another
        self.talk = Conversation(0, 0, 0)  # of the job that runs
        self.unsaid = 0  # records that it will tell yet
        self.heard = 0  # of its own records, ever
        self.is_blocked = False  # it waits until it is heard
        self.followed: set[tuple[int, int]] = set()  # attempts whose output is told


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
        self.setup_hangs: set[str] = set()
        self.store = Store()
        self.kept: set[int] = set()  # computations that are gone, but not their files
        self.workers: dict[int, Worker] = {}
        self._clock = clock
        self._chance = chance
        self._life = life
        self._diary = diary
        self._course_of = course_of
        self._on_event = on_event
        self._templates: dict[int, bool] = {}  # computation: whether it was released
        self._layers: dict[int, set[int]] = {}
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

    def prepare(self, prepare: Prepare) -> None:
        """Load a computation, whose files are all in the store."""
        computation, spec = prepare.computation, prepare.spec
        assert computation not in self._templates
        assert self.store.has_all(spec.files + prepare.files), "a set-up begins without its files"
        self.kept.discard(computation)
        self._templates[computation] = False
        self._names[computation] = spec.name
        self._layers[computation] = {layer_number(code) for code in spec.layers}
        if spec.name in self.setup_hangs:
            return
        event: TemplateReady | TemplateFailed = TemplateReady(computation)
        if spec.name in self.setup_fails:
            event = TemplateFailed(computation, "setup raised an exception")
        self._clock.after(self._chance.uniform(0.01, 0.2), partial(self._loaded, event))

    def define(self, computation: int, layers: list[Code]) -> None:
        """Load later layers; only processes that are forked from now on know them."""
        if self._templates.get(computation) is False:
            self._layers[computation].update(map(layer_number, layers))

    def put(self, computation: int, request: int, file: FileSpec) -> None:
        """Place a file."""
        assert self.store.has_all([file]), "a file is to be placed that isn't there"
        error = "" if self._templates.get(computation) is False else "it is not running"
        self._tell(FilePlaced(computation, request, error))

    def _loaded(self, event: TemplateReady | TemplateFailed) -> None:
        if self._templates.get(event.computation) is not False:
            return
        if isinstance(event, TemplateFailed):
            del self._templates[event.computation]
        self._tell(event)

    def release(self, computation: int, keep: bool = False) -> None:
        """End all of a computation. No other event of it comes after this."""
        if computation not in self._templates:
            if not keep:
                self.kept.discard(computation)
            self._tell(TemplateGone(computation))
            return
        self._templates[computation] = True
        for worker in list(self.workers.values()):
            if worker.computation == computation:
                self._bury(worker)
        after = self._chance.uniform(0.001, 0.1)
        self._clock.after(after, partial(self._gone, computation, keep))

    def _gone(self, computation: int, keep: bool) -> None:
        del self._templates[computation]
        if keep:
            self.kept.add(computation)
        self._tell(TemplateGone(computation))

    # -- workers ---------------------------------------------------------------------------

    def spawn(self, computation: int, number: int, max_tasks: int) -> None:
        """Fork a job process."""
        if self._templates.get(computation) is not False:
            self._tell(WorkerExited(number, 0, "its computation is not running"))
            return
        layers = frozenset(self._layers[computation])
        max_tasks = max_tasks if max_tasks > 1 else 0  # fresh processes are the lane's affair
        self.workers[number] = worker = Worker(number, computation, max_tasks, layers)
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
            assert all(job.options is None or self.store.has_all(job.options.files) for job in jobs)
            worker.given += len(jobs)
            worker.waiting.extend(jobs)
            self._next(worker)

    def retire(self, number: int) -> None:
        """End a process that has no jobs."""
        worker = self.workers.get(number)
        if worker is not None:
            assert not worker.waiting and worker.running is None, "it has jobs"
            self._clock.after(0.002, partial(self._retired, worker))

    def _retired(self, worker: Worker) -> None:
        if worker.is_alive:
            self._bury(worker)
            self._tell(WorkerExited(worker.number, worker.begun, ""))

    def revoke(self, number: int) -> int:
        """Take back what has not begun."""
        worker = self.workers.get(number)
        if worker is None:
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
            worker.unsaid, worker.is_blocked = 0, False
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
            self._tell(WorkerExited(worker.number, worker.begun, f"killed by {reason}"))

    # -- jobs ------------------------------------------------------------------------------

    def _next(self, worker: Worker) -> None:
        idle = worker.is_ready and worker.is_alive and worker.running is None
        if idle and worker.waiting:
            spec = worker.running = worker.waiting.popleft()
            worker.begun += 1
            worker.since = self._clock.now
            self._begin(worker, spec)

    def _begin(self, worker: Worker, spec: JobSpec) -> None:
        name = self._names[worker.computation]
        course = self._course_of(name, spec.seq)
        known = course.layers <= 1 or worker.layers >= set(range(1, course.layers + 1))
        assert known, f"job {name}/{spec.seq} needs code that its process doesn't know"
        if spec.attempt <= course.fails:
            course = Course(course.run_s, End.RAISE)
        worker.course = course
        worker.talk = Conversation(spec.seq, spec.attempt, worker.talk.own)
        worker.unsaid, worker.heard, worker.is_blocked = course.records, worker.talk.own, False
        self._note(self._diary.begun, worker, spec)
        if spec.options is not None and spec.options.follow:
            worker.followed.add((spec.seq, spec.attempt))
        if (spec.seq, spec.attempt) in worker.followed:
            self._look_later(worker, spec)
        self._go_on(worker)

    def _go_on(self, worker: Worker) -> None:
        """Plan what the job does next: say something, or end."""
        part_s = worker.course.run_s / (worker.course.records + 1)
        if worker.unsaid:
            worker.turn += 1
            self._clock.after(part_s, partial(self._say, worker, worker.turn))
        else:
            self._plan_end(worker, part_s)

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
        self._note_time(worker)
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
        self._note_time(worker)
        worker.is_alive = False
        del self.workers[worker.number]

    # -- records ---------------------------------------------------------------------------

    def _say(self, worker: Worker, turn: int) -> None:
        """Tell a provisional result, unless too many have not been heard."""
        if not worker.is_alive or turn != worker.turn:
            return
        if worker.talk.own - worker.heard >= OWN_AHEAD:
            worker.is_blocked = True
            return
        worker.unsaid -= 1
        self._record(worker, worker.talk.tell(PROVISIONAL, b"so far", []))
        self._go_on(worker)

    def acknowledge(self, number: int, seq: int, attempt: int, upto: int, error: str) -> None:
        """The client has dealt with records of an attempt; the job may go on."""
        worker = self.workers.get(number)
        if worker is None or worker.running is None:
            return
        if (worker.talk.seq, worker.talk.attempt) != (seq, attempt):
            return
        heard, _ = worker.talk.hear(upto, error)
        worker.heard = max(worker.heard, heard)
        if worker.is_blocked and worker.talk.own - worker.heard < OWN_AHEAD:
            worker.is_blocked = False
            self._say(worker, worker.turn)

    def follow(self, number: int, seq: int, attempt: int) -> None:
        """Tell the output of an attempt."""
        worker = self.workers.get(number)
        if worker is None or (seq, attempt) in worker.followed:
            return
        worker.followed.add((seq, attempt))
        spec = worker.running
        if spec is not None and (spec.seq, spec.attempt) == (seq, attempt):
            self._look_later(worker, spec)

    def _look_later(self, worker: Worker, spec: JobSpec) -> None:
        self._clock.after(LOOK_S, partial(self._look, worker, spec))

    def _look(self, worker: Worker, spec: JobSpec) -> None:
        """A followed job has printed something."""
        if worker.is_alive and worker.running is spec and self._is_alive:
            if worker.talk.has_room:
                self._record(worker, worker.talk.tell_output(1, b"text"))
            self._look_later(worker, spec)

    def _record(self, worker: Worker, record: JobRecord) -> None:
        name = self._names[worker.computation]
        self._diary.said[name, record.seq, record.attempt] = record.number
        self._tell(Recorded(worker.number, [record]))

    # -- the diary -------------------------------------------------------------------------

    def _note_time(self, worker: Worker) -> None:
        """Write down how long the job has run that ends now."""
        if worker.running is not None:
            key = (self._names[worker.computation], worker.running.seq)
            lasted_s = self._clock.now - worker.since
            self._diary.lasted.setdefault(key, []).append(lasted_s)

    def _note(self, page: Page, worker: Worker, spec: JobSpec) -> None:
        name = self._names[worker.computation]
        page.setdefault((name, spec.seq), []).append((self._life, spec.attempt))

    def _tell(self, event: Event) -> None:
        if self._is_alive:
            self._events.append(event)
            self._on_event()


def layer_number(code: Code) -> int:
    """Return which layer this is; the first has number 1."""
    return int(code.pickled.payload)
