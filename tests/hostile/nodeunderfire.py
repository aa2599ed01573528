"""A node as it runs, at the mercy of brokers that say babble and of job processes that do as well.

The shell, the agent and the store are the real ones; in place of the launcher there are processes
that are only said to exist, and that end, break down or report as the dice say.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dispy.node import processevents
from dispy.node.core import KEEP_S, Agent
from dispy.node.daemon import NodeDaemon, Settings
from dispy.protocol import messages as m
from dispy.protocol.arrivals import Arrived

from .babble import KINDS, Babbler
from .honest import SPEC, Honest
from .liars import ASTRAY, Clock, Liar, Wire
from .underfire import FILES, PIECES, RANGES

FROM_BROKER = (
    m.Prepare, m.Prepare, m.Run, m.Run, m.Run, m.Run, m.Withdraw, m.Kill, m.Release, m.Inventory,
    m.SetCpus, m.PutFile, m.Follow, m.Define, m.RecordsHeard, m.BlobPieces, m.BlobPieces,
    m.BlobPieces,
)  # fmt: skip


QUIET_S = 100.0
PATIENCE = 50  # rounds in which a job is done


class Processes:
    """In place of a launcher and its workers: makes up what comes of what it was asked for."""

    def __init__(self, chance: random.Random, babbler: Babbler) -> None:
        self.templates: dict[int, str] = {}
        self.workers = self  # a launcher's are another object
        self.living: dict[int, int] = {}  # worker to computation
        self.jobs: dict[int, deque[m.JobSpec]] = {}
        self.begun: dict[int, int] = {}
        self.breaks = 0.1  # how often something breaks down
        self._chance = chance
        self._babbler = babbler
        self._events: list[processevents.Event] = []

    def tick(self) -> None:
        """Something happens."""
        chance = self._chance
        for number, stage in list(self.templates.items()):
            if chance.random() < 0.5:
                self._advance(number, stage)
        for worker in list(self.living):
            if chance.random() < 0.5:
                self._work(worker)

    def _advance(self, number: int, stage: str) -> None:
        if stage == "stopping":
            for worker in [each for each, of in self.living.items() if of == number]:
                self._forget(worker)
            del self.templates[number]
            self._events.append(processevents.TemplateGone(number))
        elif stage == "loading" and self._chance.random() < self.breaks:
            self.templates[number] = "failed"
            self._events.append(processevents.TemplateFailed(number, "no"))
        elif stage == "loading":
            self.templates[number] = "ready"
            self._events.append(processevents.TemplateReady(number))

    def _work(self, worker: int) -> None:
        chance, jobs = self._chance, self.jobs[worker]
        if chance.random() < self.breaks:
            self.kill(worker)
        elif jobs:
            job = jobs[0]
            record: m.JobRecord = self._babbler.message(m.JobRecord)
            record.seq, record.attempt = job.seq, job.attempt
            self._events.append(processevents.Recorded(worker, [record]))
            if chance.random() < 0.7:
                jobs.popleft()
                self.begun[worker] += 1
                result: m.JobResult = self._babbler.message(m.JobResult)
                result.seq, result.attempt = job.seq, job.attempt
                self._events.append(processevents.Outcomes(worker, [result]))

    def _forget(self, worker: int) -> None:
        del self.living[worker], self.jobs[worker], self.begun[worker]

    # -- what these can do -------------------------------------------------------------------

    def prepare(self, prepare: m.Prepare) -> None:
        """Begin to load a computation."""
        assert prepare.computation not in self.templates
        self.templates[prepare.computation] = "loading"

    def release(self, computation: int, keep: bool = False) -> None:
        """End all of a computation."""
        self.templates[computation] = "stopping"

    def spawn(self, computation: int, worker: int, max_tasks: int) -> None:
        """Fork a job process."""
        self.living[worker], self.jobs[worker], self.begun[worker] = computation, deque(), 0

    def give(self, worker: int, jobs: Sequence[m.JobSpec]) -> None:
        """Hand jobs over."""
        if worker in self.jobs:
            self.jobs[worker].extend(jobs)

    def revoke(self, worker: int) -> int:
        """Take jobs back."""
        jobs = self.jobs.get(worker, deque())
        count = max(0, len(jobs) - 1)
        for _ in range(count):
            jobs.pop()
        return count

    def kill(self, worker: int) -> None:
        """End a job process."""
        if worker in self.living:
            begun = self.begun[worker] + bool(self.jobs[worker])
            self._forget(worker)
            self._events.append(processevents.WorkerExited(worker, begun, "it died"))

    retire = terminate = kill

    def put(self, computation: int, request: int, file: m.FileSpec) -> None:
        """Place a file."""
        self._events.append(processevents.FilePlaced(computation, request, ""))

    def ignore(self, *_: Any) -> None:
        """Nothing comes of it."""

    interrupt = define = clear = acknowledge = follow = close = ignore

    def take_events(self) -> list[processevents.Event]:
        """Return what has happened."""
        events, self._events = self._events, []
        return events


class NodeUnderFire:
    """A node with two brokers that lie. ``clock`` is the one of its shell."""

    def __init__(self, seed: int, folder: Path, clock: Clock) -> None:
        self.chance = chance = random.Random(seed)
        self.clock = clock
        self.babbler = Babbler(chance, lies=0.0)
        self.wire = Wire()
        self.processes = Processes(chance, self.babbler)
        settings = Settings("0", "node", 2, (), "", folder / "blobs", folder, max_file_bytes=300)
        self.daemon = NodeDaemon(settings, self.processes, self.wire)  # type: ignore[arg-type]
        self.handlers = list(Agent.HANDLERS)
        self._names = 0
        self.liars = [self._enter(), self._enter()]
        self.liar = self.liars[0]
        self._return()

    def _enter(self) -> Liar:
        self._names += 1
        name = f"broker{self._names}"
        who = m.Identity("broker", name, name, "0", "3.11.7", "Linux")
        return Liar(self.wire, who, self.babbler, name)

    def _return(self) -> None:
        """Have one of them come over a new connection, or a new one."""
        self._names += 1
        if self.chance.random() < 0.3:
            self.liars[self.chance.randrange(len(self.liars))] = self._enter()
        self.liar = self.chance.choice(self.liars)
        self.liar.route = f"connection{self._names}".encode()
        self._receive(self.liar.hello())

    def _receive(self, arrived: Arrived) -> None:
        self.daemon._handle(self.daemon.exchange.receive(arrived, self.clock.now))
        self.daemon._round(self.clock.now)

    def step(self) -> None:
        """Have a broker say something; time passes, and processes do something."""
        chance = self.chance
        self.clock.now += chance.choice((0.0, 0.001, 0.01, 0.3))
        if chance.random() < 0.01:
            self.clock.now += chance.choice((2.0, 30.0, 4000.0))
        self.liar.listen()
        if not self.liar.is_in or chance.random() < 0.005:
            self._return()
            return
        self._learn()
        self._receive(self.liar.say(self._messages()))
        if self.babbler.spoils and chance.random() < ASTRAY:
            self._receive(self.liar.astray())
        if chance.random() < 0.3:
            self._work(0.0)

    def _work(self, seconds: float) -> None:
        self.clock.now += seconds
        self.processes.tick()
        self.daemon._round(self.clock.now)

    def quieten(self) -> None:
        """Have all brokers leave, and wait until nothing is kept for them."""
        for liar in self.liars:
            self._receive(liar.goodbye())
        for _ in range(int(2.5 * KEEP_S / QUIET_S)):
            self._work(QUIET_S)
        self.wire.sent.clear()

    def run_a_job(self) -> bool:
        """Have an honest broker come, with a job; say whether that comes through."""
        self._names += 1
        name = f"honest{self._names}"
        who = m.Identity("broker", name, name, "0", "3.11.7", "Linux")
        broker = Honest(self.wire, who, self.chance)
        self.processes.breaks = 0.0
        broker.owe(m.Prepare(self._names, SPEC), m.Run(self._names, [m.JobSpec(1, 1, b"x")]))
        for _ in range(PATIENCE):
            while word := broker.next_word(self.clock.now):
                self._receive(word)
            self._work(0.3)
        self.processes.breaks = 0.1
        self._receive(broker.goodbye())
        return len(broker.results) == 1 and len(broker.sessions) == 1

    def _messages(self) -> list[m.Body]:
        chance = self.chance
        kinds = KINDS if chance.random() < self.babbler.lies / 20 else FROM_BROKER
        return [self.babbler.message(chance.choice(kinds)) for _ in range(chance.choice((1, 1, 3)))]

    def _learn(self) -> None:
        numbers, seqs = [1, 2], list(range(1, 30))
        self.babbler.likely = {
            "cluster": numbers, "computation": numbers, "seq": seqs, "attempt": [1, 1, 1, 2],
            "pulse_interval": [0.0, 1.0], "setup_timeout": [0.0, 0.0, 5.0], "cpus": [0, 1, 2],
            "max_tasks_per_child": [0, 1, 2], "count": [1, 2, 9], "status": [9, 11], "error": [""],
            m.FileSpec: FILES, m.BlobPiece: PIECES, m.BlobRange: RANGES, "kind": [1, 2, 3],
        }  # fmt: skip
