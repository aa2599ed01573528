"""An agent among everything that can happen to it, in any order, from a seed.

All invariants are checked after each event. At the end the storm is over, the broker and the
processes do what they are asked to, and each job must have ended once and each file come.
"""

from __future__ import annotations

import random
from collections import deque

import pytest

from dispy.node.core import KEEP_S, LEASE_S, Agent
from dispy.node.effects import (
    DefineLayers,
    Destroy,
    DropBlob,
    Effect,
    Give,
    Goodbye,
    Interrupt,
    KeepPiece,
    Put,
    Retire,
    Revoke,
    Send,
    Spawn,
    StartTemplate,
    StopTemplate,
    TellTime,
    Terminate,
)
from dispy.node.service import DAY_S, Hours
from dispy.protocol import blobs
from dispy.protocol.messages import (
    FINISHED,
    OUTPUT,
    TERMINATED,
    BlobPiece,
    BlobPieces,
    BlobRange,
    Body,
    Code,
    ComputationSpec,
    Define,
    Done,
    FileSpec,
    Follow,
    Identity,
    Inventory,
    JobOptions,
    JobRecord,
    JobResult,
    JobSpec,
    Kill,
    NeedBlobs,
    Prepare,
    PutFile,
    Release,
    Returned,
    Run,
    SetCpus,
    Withdraw,
)
from dispy.protocol.payload import pack_result

STEPS = 400
CONTENTS = [bytes([65 + index]) * (index * 7) for index in range(6)]
FILES = [FileSpec(f"f{n}", blobs.digest_of(data), len(data)) for n, data in enumerate(CONTENTS)]
BROKERS = [Identity("broker", name, name, "0", "3", "Linux") for name in ("b0", "b1")]
THIRDS = Hours(0, DAY_S // 3, 2 * DAY_S // 3)  # open, stopped, ended
BODY = pack_result(b"", b"", b"", "KeyboardInterrupt")


class Storm:
    """The agent, a broker and processes that do as the dice say."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.agent = Agent(3, store_bytes=60, hours=THIRDS if seed % 3 == 0 else None)
        self.now = 100.0
        self.time_s = 0  # of day
        self.seq = 0
        self.held: dict[bytes, bytes] = {}  # the store
        self.is_disk_bad = False
        self.templates: dict[int, str] = {}
        self.workers: dict[int, tuple[int, int]] = {}  # computation, max_tasks
        self.jobs: dict[int, deque[JobSpec]] = {}  # of these workers
        self.counts: dict[int, int] = {}  # jobs that a worker has ended
        self.puts: list[Put] = []
        self.wanted: list[tuple[int, BlobRange]] = []
        self.ends: dict[tuple[int, int], int] = {}  # seq, attempt: how often it ended
        self.ran: set[tuple[int, int]] = set()
        self.has_news = False  # of processes, since effects are being carried out
        self.join(BROKERS[0])

    # -- the agent's side ------------------------------------------------------------------

    def settle(self) -> None:
        self.agent.check()
        while effects := self.agent.flush(self.now):
            self.agent.check()
            self.has_news = False
            for effect in effects:
                self.carry_out(effect)
                self.agent.check()
            if not self.has_news and self.agent.is_settled(effects):  # then nobody asks again
                self.top_up(self.agent.flush(self.now))
                return

    def top_up(self, effects: list[Effect]) -> None:
        """What one more flush finds to do isn't urgent.

        More for processes that are at work, and results that may wait while jobs do.
        """
        for effect in effects:
            if isinstance(effect, Give):
                assert self.jobs[effect.worker]
            else:
                assert isinstance(effect, Send) and isinstance(effect.message, Done)
            self.carry_out(effect)

    def carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self.hear(effect.message)
        elif isinstance(effect, TellTime):
            self.agent.time_told(self.time_s, self.now)
        elif isinstance(effect, KeepPiece):
            self.write(effect)
        elif isinstance(effect, DropBlob):
            self.held.pop(effect.digest, None)
        elif isinstance(effect, StartTemplate):
            assert effect.prepare.computation not in self.templates
            for file in effect.prepare.spec.files:
                assert len(self.held[file.digest]) == file.size
            self.templates[effect.prepare.computation] = "loading"
        elif isinstance(effect, StopTemplate):
            self.templates[effect.computation] = "stopping"
        elif isinstance(effect, Put):
            assert effect.file.digest in self.held
            self.puts.append(effect)
        elif isinstance(effect, Goodbye) and effect.keep:
            self.agent.kept_for(effect.peer, [Done(1, [self.result(JobSpec(0, 1, b""))])], self.now)
        else:
            self.work(effect)

    def work(self, effect: Effect) -> None:
        if isinstance(effect, Spawn):
            assert self.templates[effect.computation] == "ready"
            self.workers[effect.worker] = (effect.computation, effect.max_tasks)
            self.jobs[effect.worker], self.counts[effect.worker] = deque(), 0
        elif isinstance(effect, Give) and effect.worker in self.workers:
            for job in effect.jobs:
                for file in job.options.files if job.options else ():
                    assert file.digest in self.held
            self.jobs[effect.worker].extend(effect.jobs)
        elif isinstance(effect, Revoke):
            jobs = self.jobs.get(effect.worker, deque())
            count = max(0, len(jobs) - 1)
            for _ in range(count):
                jobs.pop()
            self.agent.revoked(effect.worker, count, self.now)
        else:
            self.press(effect)

    def press(self, effect: Effect) -> None:
        if isinstance(effect, Interrupt) and self.chance.random() < 0.5:
            self.end_job(effect.worker, TERMINATED)
        elif isinstance(effect, (Terminate, Destroy)) and effect.worker in self.workers:
            self.exit(effect.worker)
        elif isinstance(effect, Retire):
            assert not self.jobs.get(effect.worker)
            if effect.worker in self.workers:
                self.exit(effect.worker)
        elif isinstance(effect, DefineLayers):
            assert self.templates[effect.computation] == "ready"

    def write(self, piece: KeepPiece) -> None:
        content = b"".join(piece.buffers)
        assert piece.offset == 0 and piece.last
        if self.is_disk_bad and self.chance.random() < 0.2:
            self.agent.blob_failed(piece.digest, "no space")
        elif blobs.digest_of(content) == piece.digest:
            self.held[piece.digest] = content
            self.agent.blob_kept(piece.digest)
        else:
            self.agent.blob_spoiled(piece.digest)

    def hear(self, message: Body) -> None:
        if isinstance(message, Done):
            for result in message.results:
                key = (result.seq, result.attempt)
                if result.seq:
                    self.ends[key] = self.ends.get(key, 0) + 1
        elif isinstance(message, Returned):
            for key in message.jobs:
                assert key not in self.ends
                self.ran.discard(key)
        elif isinstance(message, NeedBlobs):
            self.wanted += [(message.cluster, wanted) for wanted in message.ranges]

    # -- processes ---------------------------------------------------------------------------

    def result(self, job: JobSpec, status: int = FINISHED) -> JobResult:
        end = 1.0 + self.chance.choice([1e-5, 1e-5, 0.5])
        return JobResult(job.seq, job.attempt, status, 1.0, end, BODY)

    def end_job(self, worker: int, status: int = FINISHED) -> None:
        if not self.jobs.get(worker):
            return
        job = self.jobs[worker].popleft()
        self.counts[worker] += 1
        self.has_news = True
        self.agent.recorded(worker, [JobRecord(job.seq, job.attempt, 1, OUTPUT, b"")])
        self.agent.outcomes(worker, [self.result(job, status)], self.now)
        if self.counts[worker] == self.workers[worker][1]:
            self.exit(worker)

    def exit(self, worker: int) -> None:
        begun = self.counts[worker] + bool(self.jobs[worker]) * self.chance.choice([0, 1, 1])
        self.forget(worker)
        self.has_news = True
        self.agent.worker_exited(worker, begun, "it died", (b"", b""), self.now)

    def forget(self, worker: int) -> None:
        del self.workers[worker], self.jobs[worker], self.counts[worker]

    def advance(self, number: int) -> None:
        """Have a template go on."""
        stage = self.templates[number]
        if stage == "loading" and self.is_disk_bad and self.chance.random() < 0.2:
            self.agent.template_failed(number, "it failed")
        elif stage == "loading":
            self.templates[number] = "ready"
            self.agent.template_ready(number)
        elif stage == "stopping":
            for worker in [each for each in self.workers if self.workers[each][0] == number]:
                self.forget(worker)
            del self.templates[number]
            self.puts = [put for put in self.puts if put.computation != number]
            self.agent.template_gone(number)

    # -- the broker ------------------------------------------------------------------------------

    def tell(self, message: Body) -> None:
        self.agent.receive(self.agent.broker, message, self.now)

    def join(self, identity: Identity) -> None:
        if not self.agent.admit(identity, self.now):
            self.agent.joined(identity.instance, identity, [], self.now)

    def prepare(self, number: int) -> None:
        chance = self.chance
        spec = ComputationSpec(
            "c",
            [Code("3.11", JobSpec(0, 0, b""))],
            files=chance.sample(FILES, chance.randrange(3)),
            max_tasks_per_child=number % 3,
            cancel_grace=1.0,
            pulse_interval=chance.choice([0.0, 1.0]),
            setup_timeout=chance.choice([0.0, 2.0]),
        )
        self.tell(Prepare(number, spec, chance.randrange(3)))

    def run(self, number: int) -> None:
        chance = self.chance
        jobs = []
        for _ in range(chance.choice([1, 3, 20])):
            self.seq += 1
            options = None
            if chance.random() < 0.4:
                files = chance.sample(FILES, chance.randrange(3))
                timeout = chance.choice([0.0, 0.3])
                options = JobOptions(0, timeout, 0, 0, chance.random() < 0.3, files)
            jobs.append(JobSpec(self.seq, 1, b"x", [], options))
        if number in self.agent.computations:
            self.ran |= {(job.seq, 1) for job in jobs}
        self.tell(Run(number, jobs))

    def answer(self) -> None:
        """Send a piece that was asked for, or something else."""
        if not self.wanted:
            return
        number, wanted = self.wanted.pop(self.chance.randrange(min(3, len(self.wanted))))
        content = next(data for data in CONTENTS if blobs.digest_of(data) == wanted.digest)
        piece = BlobPiece(wanted.digest, wanted.offset, content)
        if self.is_disk_bad and self.chance.random() < 0.2:
            piece.data = self.chance.choice([content[:-1], b"x" * len(content)])
        elif self.is_disk_bad and self.chance.random() < 0.1:
            piece = BlobPiece(wanted.digest, wanted.offset, b"", error="it has changed")
        self.tell(BlobPieces(number, 0, [piece]))

    def some_jobs(self) -> list[tuple[int, int]]:
        return [(self.chance.randint(1, self.seq + 1), 1) for _ in range(3)]

    def step(self) -> None:
        """One thing happens."""
        chance, number = self.chance, self.chance.randint(1, 3)
        worker = chance.choice(list(self.workers) or [0])
        actions = [
            lambda: self.run(number),
            lambda: self.run(number),
            lambda: self.prepare(number),
            lambda: self.tell(Withdraw(number, 4)),
            lambda: self.tell(Kill(number, self.some_jobs())),
            lambda: self.tell(Follow(number, self.some_jobs())),
            lambda: self.tell(SetCpus(number, chance.randrange(4))),
            lambda: self.tell(PutFile(number, chance.randrange(5), chance.choice(FILES))),
            lambda: self.tell(Define(number, [Code("3.11", JobSpec(0, 0, b""))])),
            self.answer,
            self.answer,
            self.answer,
            lambda: self.end_job(worker),
            lambda: self.end_job(worker),
            lambda: self.end_job(worker),
            self.rare,
        ]
        chance.choice(actions)()

    def rare(self) -> None:
        chance, number = self.chance, self.chance.randint(1, 3)
        worker = chance.choice(list(self.workers) or [0])
        actions = [
            lambda: self.tell(Release(number, chance.random() < 0.5)),
            lambda: self.exit(worker) if worker else None,
            lambda: self.agent.away(self.agent.broker, self.now),
            lambda: self.agent.back(self.agent.broker),
            lambda: self.join(chance.choice(BROKERS)),
            lambda: self.tell(Inventory([(number, *key) for key in self.ran])),
            lambda: self.pass_time(chance.choice([1.0, LEASE_S + 1, KEEP_S + 1])),
            lambda: self.agent.left(chance.choice(["b0", "b1"])),
            lambda: self.set_clock(chance.randrange(DAY_S)),
        ]
        chance.choice(actions)()
        if not self.agent.broker:
            self.join(chance.choice(BROKERS))

    def set_clock(self, time_s: int) -> None:
        self.time_s = time_s
        if self.agent.node.duty.hours is not None:
            self.agent.time_told(time_s, self.now)

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        ticks = 0
        while self.now < until and ticks < 300:
            ticks += 1
            self.now = min(until, max(self.agent.deadline(), self.now + 1e-3))
            self.agent.tick(self.now)
            self.settle()

    def move_on(self) -> None:
        """Templates and files that are to be put don't wait for ever."""
        for number in list(self.templates):
            if self.chance.random() < 0.3:
                self.advance(number)
                self.settle()
        if self.puts:
            put = self.puts.pop()
            self.agent.file_placed(put.computation, put.request, "")
            self.settle()

    def calm_down(self) -> None:
        """All goes well from now on."""
        self.is_disk_bad = False
        self.set_clock(THIRDS.start)
        for _ in range(1000):
            if not any(each.tasks or each.puts for each in self.agent.computations.values()):
                return
            while self.wanted:
                self.answer()
                self.settle()
            for worker in list(self.workers):
                self.end_job(worker)
                self.settle()
            self.move_on()
            self.pass_time(0.05)


@pytest.mark.parametrize("seed", range(60))
def test_a_storm(seed: int) -> None:
    storm = Storm(seed)
    storm.is_disk_bad = seed % 2 == 1
    storm.settle()
    for _ in range(STEPS):
        storm.step()
        storm.settle()
        storm.move_on()
        storm.pass_time(storm.chance.choice([0.0, 0.0, 0.02, 0.1]))
    storm.agent.joined(storm.agent.broker, BROKERS[0], [], storm.now)
    storm.settle()
    storm.calm_down()
    assert all(count == 1 for count in storm.ends.values())
    assert storm.held.keys() == storm.agent.node.fetching.held.keys()
    for computation in storm.agent.computations.values():
        assert not computation.tasks and not computation.waiting and not computation.puts
