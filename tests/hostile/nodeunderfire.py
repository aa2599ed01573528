"""A node as it runs, at the mercy of brokers that say babble and of job processes that do as well.

The shell, the agent and the store are the real ones; in place of the launcher there are processes
that are only said to exist, and that end, break down or report as the dice say.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dispy.node import launcher as processes
from dispy.node.core import Agent
from dispy.node.daemon import NodeDaemon, Settings
from dispy.protocol import messages as m
from dispy.protocol.arrivals import Arrived

from .babble import KINDS, Babbler
from .underfire import FILES, PIECES, RANGES, Liar, Wire

FROM_BROKER = (
    m.Prepare, m.Prepare, m.Run, m.Run, m.Run, m.Run, m.Withdraw, m.Kill, m.Release, m.Inventory,
    m.SetCpus, m.PutFile, m.Follow, m.Define, m.RecordsHeard, m.BlobPieces, m.BlobPieces,
    m.BlobPieces,
)  # fmt: skip


class Processes:
    """In place of a launcher: knows what it was asked for, and makes up what comes of it."""

    def __init__(self, chance: random.Random, babbler: Babbler) -> None:
        self.templates: dict[int, str] = {}
        self.workers: dict[int, int] = {}  # of which computation
        self.jobs: dict[int, deque[m.JobSpec]] = {}
        self.begun: dict[int, int] = {}
        self._chance = chance
        self._babbler = babbler
        self._events: list[processes.Event] = []

    def tick(self) -> None:
        """Something happens."""
        chance = self._chance
        for number, stage in list(self.templates.items()):
            if chance.random() < 0.5:
                self._advance(number, stage)
        for worker in list(self.workers):
            if chance.random() < 0.5:
                self._work(worker)

    def _advance(self, number: int, stage: str) -> None:
        if stage == "stopping":
            for worker in [each for each, of in self.workers.items() if of == number]:
                self._forget(worker)
            del self.templates[number]
            self._events.append(processes.TemplateGone(number))
        elif stage == "loading" and self._chance.random() < 0.1:
            self.templates[number] = "failed"
            self._events.append(processes.TemplateFailed(number, "no"))
        elif stage == "loading":
            self.templates[number] = "ready"
            self._events.append(processes.TemplateReady(number))

    def _work(self, worker: int) -> None:
        chance, jobs = self._chance, self.jobs[worker]
        if chance.random() < 0.1:
            self.kill(worker)
        elif jobs:
            job = jobs[0]
            record: m.JobRecord = self._babbler.message(m.JobRecord)
            record.seq, record.attempt = job.seq, job.attempt
            self._events.append(processes.Recorded(worker, [record]))
            if chance.random() < 0.7:
                jobs.popleft()
                self.begun[worker] += 1
                result: m.JobResult = self._babbler.message(m.JobResult)
                result.seq, result.attempt = job.seq, job.attempt
                self._events.append(processes.Outcomes(worker, [result]))

    def _forget(self, worker: int) -> None:
        del self.workers[worker], self.jobs[worker], self.begun[worker]

    # -- what a launcher can do --------------------------------------------------------------

    def prepare(self, prepare: m.Prepare) -> None:
        """Begin to load a computation."""
        assert prepare.computation not in self.templates
        self.templates[prepare.computation] = "loading"

    def release(self, computation: int, keep: bool = False) -> None:
        """End all of a computation."""
        self.templates[computation] = "stopping"

    def spawn(self, computation: int, worker: int, max_tasks: int) -> None:
        """Fork a job process."""
        self.workers[worker], self.jobs[worker], self.begun[worker] = computation, deque(), 0

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
        if worker in self.workers:
            begun = self.begun[worker] + bool(self.jobs[worker])
            self._forget(worker)
            self._events.append(processes.WorkerExited(worker, begun, "it died"))

    retire = terminate = kill

    def put(self, computation: int, request: int, file: m.FileSpec) -> None:
        """Place a file."""
        self._events.append(processes.FilePlaced(computation, request, ""))

    def ignore(self, *_: Any) -> None:
        """Nothing comes of it."""

    interrupt = define = clear = acknowledge = follow = close = ignore

    def take_events(self) -> list[processes.Event]:
        """Return what has happened."""
        events, self._events = self._events, []
        return events


class NodeUnderFire:
    """A node with two brokers that lie."""

    def __init__(self, seed: int, lies: float, folder: Path) -> None:
        self.chance = chance = random.Random(seed)
        self.babbler = Babbler(chance, lies)
        self.wire = Wire()
        self.processes = Processes(chance, self.babbler)
        settings = Settings("0", "node", 2, (), "", folder / "blobs", folder, max_file_bytes=300)
        self.daemon = NodeDaemon(settings, self.processes, self.wire)  # type: ignore[arg-type]
        self.now = time.monotonic()
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
        self.daemon._handle(self.daemon.exchange.receive(arrived, self.now))
        self.daemon._round(self.now)

    def step(self) -> None:
        """Have a broker say something; time passes, and processes do something."""
        chance = self.chance
        self.now += chance.choice((0.0, 0.001, 0.01, 0.3))
        if chance.random() < 0.01:
            self.now += chance.choice((2.0, 30.0, 4000.0))
        self.liar.listen()
        if not self.liar.is_in or chance.random() < 0.005:
            self._return()
            return
        self._learn()
        self._receive(self.liar.say(self._messages()))
        if chance.random() < 0.3:
            self.processes.tick()
            self.daemon._round(self.now)

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
