"""The agent's decisions, one by one, without processes or clocks."""

from __future__ import annotations

from typing import TypeVar

import pytest

from dispy.node.core import KEEP_S, LEASE_S, Agent
from dispy.node.effects import (
    Acknowledge,
    ClearFiles,
    DefineLayers,
    Destroy,
    DropBlob,
    Effect,
    FollowOutput,
    Give,
    Goodbye,
    Interrupt,
    KeepPiece,
    Leave,
    Measure,
    Put,
    Retire,
    Revoke,
    Send,
    Spawn,
    StartTemplate,
    StopTemplate,
    Terminate,
)
from dispy.node.endings import STEP_S
from dispy.node.guests import GUEST_S
from dispy.node.handover import BLOCKED_S
from dispy.node.reports import FALSE_STARTS_MAX
from dispy.node.spool import BYTES_MAX, RESULTS_MAX, Spool
from dispy.node.telling import HOLD_S
from dispy.node.watching import LONG_S
from dispy.protocol import blobs, payload
from dispy.protocol.errors import ProtocolError
from dispy.protocol.fetching import STORE_BYTES
from dispy.protocol.messages import (
    CANCELLED,
    FINISHED,
    OUTPUT,
    TERMINATED,
    BlobPiece,
    BlobPieces,
    Body,
    Code,
    ComputationSpec,
    Define,
    Done,
    Envelope,
    FilePut,
    FileSpec,
    Follow,
    Heard,
    Holding,
    Identity,
    Inventory,
    JobOptions,
    JobRecord,
    JobResult,
    JobSpec,
    Kill,
    NeedBlobs,
    Prepare,
    Prepared,
    Pulse,
    PutFile,
    Records,
    RecordsHeard,
    Release,
    Released,
    Returned,
    Run,
    SetCpus,
    Started,
    Submit,
    Vitals,
    Withdraw,
)
from dispy.protocol.wire import Codec

BROKER = Identity("broker", "b", "broker", "0", "3", "Linux")
OTHER = Identity("broker", "other", "another", "0", "3", "Linux")
NO_OUTPUT = (b"", b"")
VITALS = Vitals(50.0, 1 << 30, 1 << 40, 0.0)
Kind = TypeVar("Kind")


def spec_of(max_tasks: int = 1, pulse_s: float = 0.0, setup_s: float = 0.0) -> ComputationSpec:
    code = Code("3.11", JobSpec(0, 0, b"f"))
    return ComputationSpec(
        "c",
        [code],
        max_tasks_per_child=max_tasks,
        cancel_grace=1.0,
        pulse_interval=pulse_s,
        setup_timeout=setup_s,
    )


def file_of(name: str) -> FileSpec:
    content = name.encode()
    return FileSpec(name, blobs.digest_of(content), len(content))


def as_sent(message: Body) -> Body:
    """Return what arrives when this is sent."""
    codec = Codec()
    header, larges = codec.encode(Envelope(1, 1, 0, [message]))
    frame, arrived = codec.decode(header)
    for large, original in zip(arrived, larges, strict=True):
        large.chunks = original.chunks
    assert isinstance(frame, Envelope)
    return frame.messages[0]


class Stage:
    """An agent of two CPUs that works for a broker, with one computation that is ready."""

    def __init__(
        self,
        max_tasks: int = 1,
        cpus: int = 2,
        computation: Prepare | None = None,
        max_file_bytes: int = 0,
    ) -> None:
        self.agent = Agent(cpus, 0.0, STORE_BYTES, max_file_bytes)
        self.now = 100.0
        self.effects: list[Effect] = []
        self.full_disk = False
        self.agent.joined("b", BROKER, [], self.now)
        self.tell(computation or Prepare(1, spec_of(max_tasks)))
        if computation is None:
            self.ready()

    def ready(self, number: int = 1) -> None:
        self.agent.template_ready(number)
        self.flush()

    def tell(self, message: Body) -> None:
        self.agent.receive(self.agent.broker, as_sent(message), self.now)
        self.flush()

    def flush(self) -> None:
        self.agent.check()
        while effects := self.agent.flush(self.now):
            self.agent.check()
            self.effects += effects
            for effect in effects:
                self.write(effect)

    def write(self, effect: Effect) -> None:
        """Do as a store would."""
        if not isinstance(effect, KeepPiece) or not effect.last:
            return
        content = b"".join(effect.buffers)
        if self.full_disk:
            self.agent.blob_failed(effect.digest, "no space")
        elif blobs.digest_of(content) == effect.digest:
            self.agent.blob_kept(effect.digest)
        else:
            self.agent.blob_spoiled(effect.digest)
        self.agent.check()

    def bring(self, name: str, computation: int = 1) -> None:
        """Answer with a small file."""
        piece = BlobPiece(file_of(name).digest, 0, name.encode())
        self.tell(BlobPieces(computation, 0, [piece]))

    def joins(self, identity: Identity, undelivered: tuple[Body, ...] = ()) -> None:
        self.agent.joined(identity.instance, identity, list(undelivered), self.now)
        self.flush()

    def asked(self) -> list[tuple[int, bytes]]:
        """Return which blobs were asked for, through which computation."""
        return [
            (need.cluster, wanted.digest) for need in self.said(NeedBlobs) for wanted in need.ranges
        ]

    def start(self, seq: int, options: JobOptions) -> int:
        """Send a job with options, which begins at once; return its worker."""
        self.tell(Run(1, [JobSpec(seq, 1, b"x", [], options)]))
        [(worker, seqs)] = self.given().items()
        assert seqs == [seq]
        return worker

    def reasons(self) -> dict[int, str]:
        """Return the exceptions of the results, each of which is of a failed job."""
        results = [result for done in self.said(Done) for result in done.results]
        assert all(result.status in (TERMINATED, CANCELLED) for result in results)
        bodies = {each.seq: each.payload or each.parts[0].tobytes() for each in results}
        return {seq: payload.unpack_result(body).exception for seq, body in bodies.items()}

    def wait(self, seconds: float) -> None:
        """Let time pass, with the ticks that the agent asks for."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, max(self.agent.deadline(), self.now + 1e-4))
            self.agent.tick(self.now)
            self.flush()

    def take(self, kind: type[Kind]) -> list[Kind]:
        """Take out all effects of a kind."""
        taken: list[Kind] = [effect for effect in self.effects if isinstance(effect, kind)]
        self.effects = [effect for effect in self.effects if not isinstance(effect, kind)]
        return taken

    def said(self, kind: type[Kind]) -> list[Kind]:
        """Take out all messages of a kind."""
        bodies = [effect.message for effect in self.effects if isinstance(effect, Send)]
        taken: list[Kind] = [body for body in bodies if isinstance(body, kind)]
        self.effects = [
            effect
            for effect in self.effects
            if not (isinstance(effect, Send) and isinstance(effect.message, kind))
        ]
        return taken

    def run(self, *seqs: int) -> dict[int, list[int]]:
        """Send jobs; return which worker was given which."""
        self.tell(Run(1, [JobSpec(seq, 1, b"x") for seq in seqs]))
        return self.given()

    def given(self) -> dict[int, list[int]]:
        return {give.worker: [job.seq for job in give.jobs] for give in self.take(Give)}

    def ended(self, worker: int, *seqs: int, run_s: float = 1.0) -> None:
        results = [JobResult(seq, 1, FINISHED, 1.0, 1.0 + run_s, b"r") for seq in seqs]
        self.agent.outcomes(worker, results, self.now)
        self.flush()

    def results(self) -> dict[int, int]:
        return {result.seq: result.status for done in self.said(Done) for result in done.results}


def test_processes_are_forked_ahead_and_as_many_jobs_run_as_there_are_cpus() -> None:
    stage = Stage()
    assert len(stage.take(StartTemplate)) == 1 and len(stage.said(Prepared)) == 1
    assert len(stage.take(Spawn)) == 2
    given = stage.run(1, 2, 3)
    assert sorted(map(len, given.values())) == [1, 1]
    first = next(iter(given))
    stage.ended(first, *given[first])
    assert list(stage.given().values()) == [[3]]


@pytest.mark.parametrize(("max_tasks", "told"), [(0, 0), (1, 1), (3, 3)])
def test_launcher_is_told_how_many_jobs_a_process_runs(max_tasks: int, told: int) -> None:
    assert [spawn.max_tasks for spawn in Stage(max_tasks=max_tasks).take(Spawn)] == [told, told]


def test_short_jobs_go_ahead_to_lanes_too_but_count_the_fork() -> None:
    stage = Stage(max_tasks=1)
    given = stage.run(*range(1, 9))
    for worker, seqs in given.items():
        stage.ended(worker, *seqs, run_s=0.0)
    assert sum(map(len, stage.given().values())) == 6
    batches = stage.run(*range(9, 1000)).values()
    assert sum(map(len, batches)) + 6 == 2 * 5  # so many forks, at 1 ms each, take 4 ms


def test_short_jobs_go_in_batches_to_processes_that_are_reused() -> None:
    stage = Stage(max_tasks=0)
    given = stage.run(*range(1, 9))
    assert sorted(map(len, given.values())) == [1, 1]  # how long they take is not known yet
    worker = next(iter(given))
    stage.ended(worker, *given[worker], run_s=1e-5)
    assert max(map(len, stage.given().values())) > 1


def test_a_process_has_its_next_job_before_a_short_one_ends() -> None:
    stage = Stage(max_tasks=0)
    one, two = stage.run(*range(1, 8))
    for ended, given in ((1, [3, 4, 5]), (3, [6])):
        stage.ended(one, ended, run_s=0.01)
        assert [job.seq for give in stage.take(Give) for job in give.jobs] == given
    assert [task.spec.seq for task in stage.agent.workers[two].tasks] == [2, 5]
    stage.ended(one, 4, run_s=0.01)
    assert stage.take(Give) == [], "the last one is for whoever is free first"
    stage.ended(two, 2, 5, run_s=0.01)
    assert stage.given() == {two: [7]}


def test_a_newcomer_does_not_wait_for_jobs_that_were_handed_over_ahead() -> None:
    stage = Stage(max_tasks=0)
    one, two = stage.run(*range(1, 20))
    stage.ended(one, 1, run_s=0.01)
    assert {worker: len(stage.agent.workers[worker].tasks) for worker in (one, two)} == {
        one: 2,
        two: 2,
    }
    stage.take(Give)
    stage.tell(Prepare(2, spec_of(0)))
    stage.agent.template_ready(2)
    stage.tell(Run(2, [JobSpec(1, 1, b"x")]))
    assert {revoke.worker for revoke in stage.take(Revoke)} == {one, two}
    for worker in (one, two):
        stage.agent.revoked(worker, 1, stage.now)
    stage.flush()
    assert stage.take(Give) == []  # as long as another wants the CPUs
    stage.ended(one, 3, run_s=0.01)
    first, *_ = stage.take(Give)
    assert stage.agent.workers[first.worker].computation.id == 2


def test_what_waits_behind_a_long_job_is_given_to_others() -> None:
    stage = Stage(max_tasks=0, cpus=1)
    [(worker, _)] = stage.run(1, 2, 3, 4).items()
    stage.ended(worker, 1, run_s=1e-5)
    assert stage.given() == {worker: [2, 3, 4]}
    stage.wait(BLOCKED_S + 0.03)
    assert stage.take(Revoke) == [Revoke(worker)]
    stage.agent.revoked(worker, 2, stage.now)
    stage.flush()
    stage.tell(Withdraw(1, 5))
    assert stage.said(Returned) == [Returned(1, [(3, 1), (4, 1)])]


def test_long_jobs_are_reported_as_running_once() -> None:
    stage = Stage()
    stage.run(1)
    stage.wait(LONG_S + 0.03)
    [started] = stage.said(Started)
    assert [seq for seq, _, _ in started.jobs] == [1]
    stage.wait(10.0)
    assert stage.said(Started) == []
    assert stage.agent.deadline() == float("inf")  # nothing to do until it ends


def test_a_new_session_hears_again_of_jobs_that_have_been_running_for_long() -> None:
    stage = Stage()
    stage.run(1)
    stage.wait(LONG_S + 0.03)
    before = stage.said(Started)
    stage.agent.away("b", stage.now)
    stage.joins(BROKER)
    stage.wait(0.1)
    assert stage.said(Started) == before
    stage.wait(10.0)
    assert stage.said(Started) == []


def test_a_running_job_is_interrupted_then_terminated_then_killed() -> None:
    stage = Stage()
    [(worker, _)] = stage.run(1).items()
    stage.tell(Kill(1, [(1, 1)]))
    assert stage.take(Interrupt) == [Interrupt(worker)] and stage.take(Terminate) == []
    stage.wait(1.1)
    assert stage.take(Terminate) == [Terminate(worker)] and stage.take(Destroy) == []
    stage.wait(STEP_S)
    assert stage.take(Destroy) == [Destroy(worker)]
    stage.agent.worker_exited(worker, 1, "killed by SIGKILL", NO_OUTPUT, stage.now)
    stage.flush()
    assert stage.results() == {1: TERMINATED}


def test_a_job_that_has_not_begun_is_cancelled_at_once() -> None:
    stage = Stage(cpus=1)
    stage.run(1, 2)
    stage.tell(Kill(1, [(2, 1)]))
    assert stage.results() == {2: CANCELLED}


@pytest.mark.parametrize("max_tasks", [0, 1])
def test_a_job_that_follows_one_whose_result_is_on_its_way_can_be_cancelled(max_tasks: int) -> None:
    stage = Stage(max_tasks=max_tasks, cpus=1)
    [(worker, _)] = stage.run(1).items()
    stage.ended(worker, 1, run_s=1e-5)
    stage.run(2, 3)
    stage.tell(Kill(1, [(3, 1)]))
    stage.agent.revoked(worker, 0, stage.now)  # it has begun
    stage.flush()
    assert stage.take(Interrupt) == []
    stage.ended(worker, 2)
    assert stage.take(Interrupt) == [Interrupt(worker)]


@pytest.mark.parametrize("max_tasks", [0, 1])
def test_a_process_that_a_signal_may_be_on_its_way_to_gets_no_other_job(max_tasks: int) -> None:
    stage = Stage(max_tasks=max_tasks, cpus=1)
    [(worker, _)] = stage.run(1).items()
    stage.run(2)
    stage.tell(Kill(1, [(1, 1)]))
    stage.wait(1.1)
    assert stage.take(Terminate) == [Terminate(worker)]
    stage.ended(worker, 1)
    assert stage.take(Retire) == [Retire(worker)]
    assert stage.given() == {worker + 1: [2]}


def test_a_process_whose_jobs_all_ended_before_the_revocation_is_used_again() -> None:
    stage = Stage(max_tasks=0, cpus=1)
    [(worker, _)] = stage.run(1).items()
    stage.ended(worker, 1, run_s=1e-5)
    stage.run(2, 3)
    stage.tell(Kill(1, [(3, 1)]))
    assert stage.take(Revoke) == [Revoke(worker)]
    stage.ended(worker, 2, 3)
    stage.agent.revoked(worker, 0, stage.now)
    stage.flush()
    assert stage.run(4) == {worker: [4]}


def test_a_dead_process_ends_its_job_and_the_others_run_elsewhere() -> None:
    stage = Stage(max_tasks=0, cpus=1)
    [(worker, _)] = stage.run(1, 2, 3).items()
    stage.ended(worker, 1, run_s=1e-5)
    assert stage.given() == {worker: [2, 3]}
    stage.agent.worker_exited(worker, 2, "killed by SIGSEGV", NO_OUTPUT, stage.now)
    stage.flush()
    assert stage.results() == {1: FINISHED, 2: TERMINATED}
    [(other, seqs)] = stage.given().items()
    assert other != worker and seqs == [3]


def test_a_job_for_which_no_process_can_start_ends() -> None:
    stage = Stage(cpus=1)
    stage.run(1)
    for _ in range(FALSE_STARTS_MAX):
        [worker] = [each.id for each in stage.agent.workers.values() if each.tasks]
        stage.agent.worker_exited(worker, 0, "no memory", NO_OUTPUT, stage.now)
        stage.wait(3.0)
    assert stage.results() == {1: TERMINATED}


def test_results_wait_for_a_broker_that_is_away() -> None:
    stage = Stage()
    [(worker, _)] = stage.run(1).items()
    lost = Done(1, [JobResult(9, 1, FINISHED, 0.0, 1.0, b"r")])
    stage.agent.away("b", stage.now)
    stage.effects.clear()
    stage.agent.joined("b", BROKER, [lost], stage.now)
    stage.flush()
    sent = [effect.message for effect in stage.effects if isinstance(effect, Send)]
    assert sent.index(lost) < next(i for i, m in enumerate(sent) if isinstance(m, Holding))
    [holding] = stage.said(Holding)
    assert holding.jobs == [(1, 1, 1)]
    stage.tell(Inventory([]))  # the broker has given the job up
    assert stage.take(Interrupt) == [Interrupt(worker)]


def test_a_node_serves_one_broker_at_a_time() -> None:
    stage = Stage()
    assert "works for broker" in stage.agent.admit(OTHER, stage.now)
    stage.agent.away("b", stage.now)
    assert "waits" in stage.agent.admit(OTHER, stage.now + LEASE_S - 1)
    assert stage.agent.admit(OTHER, stage.now + LEASE_S + 1) == ""
    assert "takes brokers" in stage.agent.admit(
        Identity("client", "x", "x", "0", "3", "Linux"), stage.now
    )


def test_a_released_computation_is_gone_when_its_processes_are() -> None:
    stage = Stage()
    stage.run(1)
    stage.tell(Release(1))
    assert stage.take(StopTemplate) == [StopTemplate(1)] and stage.said(Released) == []
    stage.agent.template_gone(1)
    stage.flush()
    assert stage.said(Released) == [Released(1)] and not stage.agent.workers


# -- files of a computation --------------------------------------------------------------------


def test_a_computation_is_loaded_when_all_its_files_are_here() -> None:
    spec = spec_of()
    spec.files = [file_of("a"), file_of("b")]
    stage = Stage(computation=Prepare(1, spec, files=[file_of("c")]))
    assert stage.asked() == [(1, file_of(name).digest) for name in "abc"]
    stage.bring("a")
    stage.bring("c")
    assert stage.take(StartTemplate) == []
    stage.bring("b")
    [start] = stage.take(StartTemplate)
    assert start.prepare.spec.files == spec.files
    stage.ready()
    assert stage.said(Prepared) == [Prepared(1)] and stage.take(Spawn)


def test_what_has_come_is_told_also_when_nothing_is_left_to_ask_for() -> None:
    spec = spec_of()
    spec.files = [file_of("a"), file_of("b")]
    stage = Stage(computation=Prepare(1, spec))
    assert [len(need.ranges) for need in stage.said(NeedBlobs)] == [2]
    for done, name in enumerate("ab", 1):  # the broker may hold back one until it knows of another
        stage.bring(name)
        assert stage.said(NeedBlobs) == [NeedBlobs(0, 0, [], done)]


def test_two_computations_fetch_a_file_once_and_one_survives_the_other() -> None:
    spec = spec_of()
    spec.files = [file_of("a")]
    stage = Stage(computation=Prepare(1, spec))
    stage.tell(Prepare(2, spec))
    assert stage.asked() == [(1, file_of("a").digest)]
    stage.tell(Release(1))  # there is no template yet, so it is gone at once
    assert stage.said(Released) == [Released(1)] and stage.take(StopTemplate) == []
    assert stage.asked() == [(2, file_of("a").digest)]
    stage.bring("a", 2)
    assert [start.prepare.computation for start in stage.take(StartTemplate)] == [2]
    stage.tell(Prepare(3, spec))
    assert [start.prepare.computation for start in stage.take(StartTemplate)] == [3]
    assert stage.asked() == []


@pytest.mark.parametrize("trouble", ["client", "disk", "content", "size"])
def test_a_computation_without_its_files_fails_and_the_file_is_named(trouble: str) -> None:
    spec = spec_of()
    spec.files = [file_of("data.bin")]
    stage = Stage(computation=Prepare(1, spec), max_file_bytes=3 if trouble == "size" else 0)
    stage.full_disk = trouble == "disk"
    digest = spec.files[0].digest
    wrong = BlobPiece(digest, 0, b"x" * spec.files[0].size)
    if trouble == "client":
        wrong = BlobPiece(digest, 0, b"", error="it has changed")
    for _ in range(2 if trouble == "content" else 1):
        stage.tell(BlobPieces(1, 0, [wrong]))
    [prepared] = stage.said(Prepared)
    expected = {"client": "changed", "disk": "space", "content": "announced", "size": "--max-file"}
    assert prepared.error.startswith("data.bin: ") and expected[trouble] in prepared.error
    assert stage.said(Released) == [Released(1)] and not stage.agent.computations
    stage.tell(Prepare(2, spec_of()))  # the others go on
    assert stage.take(StartTemplate)


def test_a_setup_that_takes_too_long_is_ended() -> None:
    stage = Stage(computation=Prepare(1, spec_of(setup_s=2.0)))
    stage.wait(1.9)
    assert stage.take(StopTemplate) == []
    stage.wait(0.15)
    assert stage.take(StopTemplate) == [StopTemplate(1)]
    [prepared] = stage.said(Prepared)
    assert prepared.error == "setup took longer than its limit of 2 s"


def test_a_setup_in_time_is_left_alone_and_files_on_the_way_do_not_count() -> None:
    spec = spec_of(setup_s=2.0)
    spec.files = [file_of("a")]
    stage = Stage(computation=Prepare(1, spec))
    stage.wait(5.0)
    stage.bring("a")
    stage.wait(1.9)
    stage.ready()
    stage.wait(5.0)
    assert stage.take(StopTemplate) == [] and stage.said(Prepared) == [Prepared(1)]


def test_released_with_its_files_kept_and_prepared_anew() -> None:
    stage = Stage()
    stage.tell(Release(1, keep=True))
    assert stage.take(StopTemplate) == [StopTemplate(1, keep=True)]
    stage.tell(Prepare(1, spec_of()))
    stage.take(StartTemplate)
    stage.agent.template_gone(1)
    stage.flush()
    assert len(stage.take(StartTemplate)) == 1 and stage.said(Released) == []


def test_a_release_after_that_removes_what_was_kept() -> None:
    stage = Stage()
    stage.tell(Release(1, keep=True))
    stage.tell(Release(1))  # while the first is under way
    stage.take(StopTemplate)
    stage.agent.template_gone(1)
    stage.flush()
    assert stage.take(ClearFiles) == [ClearFiles(1)]
    assert stage.said(Released) == [Released(1)]


def test_what_was_kept_goes_with_the_broker() -> None:
    stage = Stage()
    stage.tell(Release(1, keep=True))
    stage.take(StopTemplate)
    stage.agent.template_gone(1)
    stage.agent.left("b")
    stage.flush()
    assert stage.take(ClearFiles) == [ClearFiles(1)]


# -- later code ----------------------------------------------------------------------------------

LAYER = Code("3.11", JobSpec(0, 0, b"layer"))


def test_with_new_code_spares_are_retired_and_new_processes_forked() -> None:
    stage = Stage(max_tasks=0)
    old = {spawn.worker for spawn in stage.take(Spawn)}
    [(busy, _)] = stage.run(1).items()
    stage.tell(Define(1, [LAYER]))
    assert stage.take(DefineLayers) == [DefineLayers(1, [LAYER])]
    [idle] = old - {busy}
    assert stage.take(Retire) == [Retire(idle)]
    [(new, _)] = stage.run(2).items()
    assert new not in old
    stage.agent.worker_exited(idle, 0, "", NO_OUTPUT, stage.now)
    stage.ended(busy, 1)
    assert stage.take(Retire) == [Retire(busy)]
    stage.agent.worker_exited(busy, 1, "", NO_OUTPUT, stage.now)
    stage.flush()
    [(third, _)] = stage.run(3).items()  # no pause: these ends were wanted
    assert third not in old
    assert stage.results() == {1: FINISHED}


def test_new_code_waits_until_the_computation_is_loaded() -> None:
    stage = Stage(computation=Prepare(1, spec_of()))
    stage.tell(Define(1, [LAYER]))
    assert stage.take(DefineLayers) == []
    stage.ready()
    kinds = [type(effect) for effect in stage.effects]
    assert kinds.index(DefineLayers) < kinds.index(Spawn)
    assert stage.take(Retire) == []


# -- options of jobs -----------------------------------------------------------------------------


def test_a_job_that_runs_too_long_is_interrupted_and_says_why() -> None:
    stage = Stage()
    worker = stage.start(1, JobOptions(timeout=5.0))
    stage.wait(4.95)
    assert stage.take(Interrupt) == []
    stage.wait(0.1)
    assert stage.take(Interrupt) == [Interrupt(worker)]
    told = "the job was cancelled:\nTraceback: KeyboardInterrupt"
    body = payload.pack_result(b"", b"out", b"", told)
    stage.agent.outcomes(worker, [JobResult(1, 1, TERMINATED, 1.0, 6.0, body)], stage.now)
    stage.flush()
    expected = "ran longer than its limit of 5 s\nTraceback: KeyboardInterrupt"
    assert stage.reasons() == {1: expected}


def test_a_job_that_does_not_heed_its_limit_is_killed() -> None:
    stage = Stage()
    worker = stage.start(1, JobOptions(timeout=0.5))
    stage.wait(0.5 + 1.0 + STEP_S + 0.1)
    assert stage.take(Interrupt) == [Interrupt(worker)]
    assert stage.take(Terminate) == [Terminate(worker)]
    assert stage.take(Destroy) == [Destroy(worker)]
    stage.agent.worker_exited(worker, 1, "killed by SIGKILL", NO_OUTPUT, stage.now)
    stage.flush()
    assert stage.reasons() == {1: "ran longer than its limit of 0.5 s; killed by SIGKILL"}


def test_a_job_that_uses_its_grace_to_return_is_finished() -> None:
    stage = Stage()
    worker = stage.start(1, JobOptions(timeout=1.0))
    stage.wait(1.1)
    stage.ended(worker, 1)
    assert stage.results() == {1: FINISHED}


def test_a_long_output_comes_with_the_reason() -> None:
    stage = Stage()
    worker = stage.start(1, JobOptions(timeout=1.0))
    stage.wait(1.1)
    body = payload.pack_result(b"", b"o" * (1 << 20), b"", "KeyboardInterrupt")
    stage.agent.outcomes(worker, [JobResult(1, 1, TERMINATED, 1.0, 6.0, body)], stage.now)
    stage.flush()
    [done] = stage.said(Done)
    assert done.results[0].payload == b""
    whole = payload.unpack_result(done.results[0].parts[0].tobytes())
    assert len(whole.stdout) == 1 << 20 and whole.exception.startswith("ran longer")


def test_jobs_with_a_limit_go_one_at_a_time_and_each_has_its_own_time() -> None:
    stage = Stage(max_tasks=0, cpus=1)
    [(worker, _)] = stage.run(1).items()
    stage.ended(worker, 1, run_s=1e-5)
    limited = [JobSpec(seq, 1, b"x", [], JobOptions(timeout=2.0)) for seq in (4, 5)]
    stage.tell(Run(1, [JobSpec(2, 1, b"x"), JobSpec(3, 1, b"x"), *limited, JobSpec(6, 1, b"x")]))
    assert stage.given() == {worker: [2, 3]}
    stage.ended(worker, 2, 3, run_s=1e-5)
    assert stage.given() == {worker: [4]}
    stage.wait(1.5)
    assert stage.take(Interrupt) == []
    stage.ended(worker, 4, run_s=1.5)
    assert stage.given() == {worker: [5]}
    stage.wait(1.5)
    assert stage.take(Interrupt) == []
    stage.wait(0.55)
    assert stage.take(Interrupt) == [Interrupt(worker)]


def test_a_job_waits_for_its_files_and_holds_nobody_up() -> None:
    stage = Stage(cpus=1)
    waiting = JobSpec(1, 1, b"x", [], JobOptions(files=[file_of("a")]))
    stage.tell(Run(1, [waiting, JobSpec(2, 1, b"x")]))
    assert list(stage.given().values()) == [[2]]
    assert stage.asked() == [(1, file_of("a").digest)]
    stage.bring("a")
    [worker] = [each.id for each in stage.agent.workers.values() if each.tasks]
    stage.ended(worker, 2)
    [give] = stage.take(Give)
    assert [job.seq for job in give.jobs] == [1] and give.jobs[0].options is not None
    stage.ended(give.worker, 1)
    again = stage.start(3, JobOptions(files=[file_of("a")]))  # it is in the store
    assert stage.asked() == []
    stage.ended(again, 3)


def test_a_job_whose_file_can_not_be_had_ends() -> None:
    stage = Stage(max_file_bytes=5)
    large = JobSpec(1, 1, b"x", [], JobOptions(files=[file_of("too-large")]))
    gone = JobSpec(2, 1, b"x", [], JobOptions(files=[file_of("gone"), file_of("ok")]))
    stage.tell(Run(1, [large, gone, JobSpec(3, 1, b"x")]))
    assert list(stage.given().values()) == [[3]]
    error = BlobPiece(file_of("gone").digest, 0, b"", error="it is gone")
    stage.tell(BlobPieces(1, 0, [error]))
    reasons = stage.reasons()
    assert "too-large: it has 9 bytes" in reasons[1] and reasons[2] == "gone: it is gone"
    assert stage.agent.computations[1].tasks.keys() == {3}


def test_a_job_that_waits_for_files_can_be_cancelled_withdrawn_and_given_up() -> None:
    stage = Stage(cpus=1)
    jobs = [JobSpec(n, 1, b"x", [], JobOptions(files=[file_of("a")])) for n in (1, 2, 3)]
    stage.tell(Run(1, [*jobs, JobSpec(4, 1, b"x"), JobSpec(5, 1, b"x")]))
    stage.tell(Kill(1, [(1, 1)]))
    stage.wait(0.01)
    assert stage.results() == {1: CANCELLED}
    stage.tell(Withdraw(1, 2))
    assert stage.said(Returned) == [Returned(1, [(3, 1), (5, 1)])]
    assert stage.take(DropBlob) == []
    stage.tell(Inventory([(1, 4, 1)]))
    assert stage.take(DropBlob) == [DropBlob(file_of("a").digest)]


def test_files_are_asked_for_again_in_a_new_session() -> None:
    stage = Stage()
    stage.tell(Run(1, [JobSpec(1, 1, b"x", [], JobOptions(files=[file_of("a")]))]))
    assert len(stage.asked()) == 1
    stage.agent.away("b", stage.now)
    stage.joins(BROKER)
    kinds = [type(effect.message) for effect in stage.effects if isinstance(effect, Send)]
    assert kinds.index(Holding) < kinds.index(NeedBlobs)
    assert stage.asked() == [(1, file_of("a").digest)]


# -- records and output --------------------------------------------------------------------------


def test_records_pass_through_while_the_attempt_runs_here() -> None:
    stage = Stage()
    [(worker, _)] = stage.run(1).items()
    record = JobRecord(1, 1, 1, OUTPUT, b"text")
    stage.agent.recorded(worker, [record, JobRecord(7, 1, 1, OUTPUT, b"of nobody")])
    stage.flush()
    assert stage.said(Records) == [Records(1, [record])]
    stage.tell(RecordsHeard(1, [Heard(1, 1, 1, "no"), Heard(1, 2, 1), Heard(9, 1, 1)]))
    assert stage.take(Acknowledge) == [Acknowledge(worker, 1, 1, 1, "no")]
    stage.tell(Inventory([]))  # given up
    stage.agent.recorded(worker, [record])
    stage.flush()
    assert stage.said(Records) == []


def test_records_come_before_the_result_also_after_a_new_session() -> None:
    stage = Stage()
    [(worker, _)] = stage.run(1).items()
    records = Records(1, [JobRecord(1, 1, 1, OUTPUT, b"text")])
    stage.agent.recorded(worker, records.records)
    stage.ended(worker, 1)
    sent = [effect.message for effect in stage.effects if isinstance(effect, Send)]
    assert sent.index(records) < next(i for i, m in enumerate(sent) if isinstance(m, Done))
    stage.effects.clear()
    stage.joins(BROKER, (records, NeedBlobs(1, 0, []), FilePut(1, 2)))
    assert [type(e.message) for e in stage.effects if isinstance(e, Send)][:3] == [
        Records,
        FilePut,
        Holding,
    ]


def test_following_a_job_that_runs_and_one_that_waits() -> None:
    stage = Stage(cpus=1)
    [(worker, _)] = stage.run(1, 2).items()
    stage.tell(Follow(1, [(1, 1), (2, 1), (3, 1), (1, 2)]))
    assert stage.take(FollowOutput) == [FollowOutput(worker, 1, 1)]
    stage.ended(worker, 1)
    [give] = stage.take(Give)
    [job] = give.jobs
    assert job.seq == 2 and job.options is not None and job.options.follow


def test_following_one_of_a_batch_takes_back_what_has_not_begun() -> None:
    stage = Stage(max_tasks=0, cpus=1)
    [(worker, _)] = stage.run(1).items()
    stage.ended(worker, 1, run_s=1e-5)
    stage.run(2, 3, 4)
    stage.tell(Follow(1, [(2, 1), (3, 1)]))
    assert stage.take(Revoke) == [Revoke(worker)] and stage.take(FollowOutput) == []
    stage.agent.revoked(worker, 2, stage.now)
    stage.flush()
    assert stage.take(FollowOutput) == [FollowOutput(worker, 2, 1)]
    stage.ended(worker, 2, run_s=1e-5)
    [give] = stage.take(Give)
    assert [job.seq for job in give.jobs] == [3]


# -- the node as a whole -------------------------------------------------------------------------


def test_the_cpus_of_a_computation_can_change() -> None:
    stage = Stage()
    stage.tell(SetCpus(1, 1))
    given = stage.run(1, 2, 3)
    assert sum(map(len, given.values())) == 1
    stage.tell(SetCpus(1, 0))
    assert list(map(len, stage.given().values())) == [1]


def test_processes_that_are_reused_run_dry_when_there_are_fewer_cpus() -> None:
    stage = Stage(max_tasks=0)
    given = stage.run(*range(1, 200))
    for worker, seqs in given.items():
        stage.ended(worker, *seqs, run_s=1e-3)
    stage.tell(SetCpus(1, 1))
    given = stage.given()
    assert len(given) == 2
    for _ in range(5):  # each time, a process has ended half of what it has
        for worker, seqs in given.items():
            stage.ended(worker, *seqs[: len(seqs) // 2 + 1], run_s=1e-3)
            given[worker] = seqs[len(seqs) // 2 + 1 :]
        for worker, seqs in stage.given().items():
            given[worker] += seqs
    assert sum(bool(worker.tasks) for worker in stage.agent.workers.values()) == 1


def test_a_file_is_put_into_a_computation_that_runs() -> None:
    stage = Stage()
    stage.tell(PutFile(1, 7, file_of("a")))
    stage.tell(PutFile(1, 7, file_of("a")))
    assert stage.take(Put) == []
    stage.bring("a")
    assert stage.take(Put) == [Put(1, 7, file_of("a"))]
    stage.agent.file_placed(1, 7, "")
    stage.flush()
    assert stage.said(FilePut) == [FilePut(1, 7)]
    stage.tell(PutFile(1, 8, file_of("b")))
    stage.tell(BlobPieces(1, 0, [BlobPiece(file_of("b").digest, 0, b"", error="gone")]))
    stage.tell(PutFile(1, 9, file_of("c")))
    stage.tell(Release(1))
    stage.tell(PutFile(1, 10, file_of("d")))
    errors = {put.request: put.error for put in stage.said(FilePut)}
    assert errors[8] == "b: gone" and "released" in errors[9] and "not at this node" in errors[10]


def test_a_file_waits_until_the_computation_is_loaded() -> None:
    stage = Stage(computation=Prepare(1, spec_of()))
    stage.tell(PutFile(1, 7, file_of("a")))
    stage.bring("a")
    assert stage.take(Put) == []
    stage.ready()
    assert stage.take(Put) == [Put(1, 7, file_of("a"))]


def test_the_node_tells_what_it_has_to_spare_as_often_as_somebody_wants() -> None:
    stage = Stage(computation=Prepare(1, spec_of(pulse_s=5.0)))
    stage.wait(4.9)
    assert stage.take(Measure) == []
    stage.wait(0.2)
    assert len(stage.take(Measure)) == 1
    stage.agent.measured(VITALS)
    stage.flush()
    assert stage.said(Pulse) == [Pulse(VITALS)]
    stage.tell(Prepare(2, spec_of(pulse_s=1.0)))
    stage.wait(10.05)
    assert len(stage.take(Measure)) == 10
    stage.agent.away("b", stage.now)
    stage.wait(10.0)
    assert stage.take(Measure) == []
    stage.agent.back("b")
    stage.wait(1.1)
    assert len(stage.take(Measure)) == 1
    stage.tell(Release(1))
    stage.tell(Release(2))
    for number in (1, 2):
        stage.agent.template_gone(number)
    stage.flush()
    stage.take(Measure)
    stage.wait(10.0)
    assert stage.take(Measure) == [] and stage.agent.deadline() == float("inf")


def test_a_broker_learns_what_there_is_to_spare_when_it_joins() -> None:
    stage = Stage()
    stage.agent.joined("b", BROKER, [], stage.now, VITALS)
    stage.flush()
    assert stage.said(Holding)[-1].vitals == VITALS


def test_a_node_that_was_asked_to_stop_does_so_when_all_is_released() -> None:
    stage = Stage()
    stage.tell(Prepare(2, spec_of()))
    stage.tell(Release(1))
    stage.agent.shutdown_asked()
    stage.agent.template_gone(1)
    stage.flush()
    assert stage.take(Leave) == []  # another computation is still here
    stage.tell(Prepare(3, spec_of()))
    assert "stopped" in stage.said(Prepared)[-1].error
    assert "stopped" in stage.agent.admit(OTHER, stage.now)
    stage.tell(Release(2))
    stage.agent.template_gone(2)
    stage.flush()
    assert stage.take(Leave) == [Leave()]


# -- what brokers leave behind -------------------------------------------------------------------

DONE = Done(1, [JobResult(9, 1, FINISHED, 0.0, 1.0, b"r")])


def given_up() -> Stage:
    """Return a node that another broker has taken over, with a result for the first."""
    stage = Stage()
    stage.agent.away("b", stage.now)
    stage.now += LEASE_S + 1
    stage.joins(OTHER)
    [goodbye] = stage.take(Goodbye)
    assert goodbye.peer == "b" and goodbye.keep
    stage.agent.kept_for("b", [DONE, Returned(1, [])], stage.now)
    stage.agent.template_gone(1)
    stage.tell(Prepare(5, spec_of()))
    stage.effects.clear()
    return stage


def sent_to(stage: Stage, peer: str) -> list[Body]:
    return [e.message for e in stage.effects if isinstance(e, Send) and e.peer == peer]


def test_what_a_broker_has_not_had_is_kept_while_the_node_works_for_another() -> None:
    stage = given_up()
    assert stage.agent.admit(BROKER, stage.now) == ""
    stage.joins(BROKER)
    assert sent_to(stage, "b") == [DONE, Released(1)]
    assert stage.agent.broker == "other"
    stage.agent.receive("b", Prepare(1, spec_of()), stage.now)  # it isn't served
    stage.flush()
    assert stage.agent.computations.keys() == {5}
    stage.agent.receive("b", Release(1), stage.now)
    stage.flush()
    assert sent_to(stage, "b")[2:] == [Released(1)]
    stage.agent.left("b")
    assert "works for another" in stage.agent.admit(BROKER, stage.now)
    assert stage.agent.broker == "other"


def test_a_guest_that_stays_is_sent_away_and_what_it_has_not_had_kept_again() -> None:
    stage = given_up()
    stage.joins(BROKER)
    stage.joins(BROKER, (DONE, Released(1)))  # a new session
    assert sent_to(stage, "b") == [DONE, Released(1)] * 2
    stage.wait(GUEST_S + 1)
    [goodbye] = stage.take(Goodbye)
    assert goodbye.peer == "b" and goodbye.keep
    stage.agent.kept_for("b", [DONE], stage.now)
    assert stage.agent.admit(BROKER, stage.now) == ""
    stage.wait(KEEP_S + 1)
    assert "works for another" in stage.agent.admit(BROKER, stage.now)


def test_a_broker_that_comes_back_to_a_free_node_gets_its_results_and_is_served() -> None:
    stage = Stage()
    stage.agent.away("b", stage.now)
    stage.wait(KEEP_S + 1)
    [goodbye] = stage.take(Goodbye)
    assert goodbye.peer == "b" and goodbye.keep
    stage.agent.kept_for("b", [DONE], stage.now)
    stage.agent.template_gone(1)
    stage.flush()
    stage.effects.clear()
    stage.joins(BROKER)
    assert sent_to(stage, "b") == [DONE, Released(1), Holding([], [])]
    assert stage.agent.broker == "b"


def test_a_broker_that_said_goodbye_leaves_nothing_behind() -> None:
    stage = Stage()
    stage.run(1)
    stage.agent.left("b")
    stage.flush()
    assert stage.take(Goodbye) == [] and stage.take(StopTemplate) == [StopTemplate(1)]


def test_what_is_kept_is_bounded() -> None:
    spool = Spool(10.0)
    results = [JobResult(seq, 1, FINISHED, 0.0, 1.0, b"") for seq in range(RESULTS_MAX + 5)]
    spool.keep("b", [Done(1, results)], 0.0)
    spool.check()
    [done] = spool.take("b")
    assert len(done.results) == RESULTS_MAX and done.results[-1].seq == RESULTS_MAX + 4
    large = [JobResult(seq, 1, FINISHED, 0.0, 1.0, bytes(BYTES_MAX // 3)) for seq in range(4)]
    spool.keep("b", [Done(1, large[:2]), Done(2, large[2:])], 0.0)
    spool.check()
    assert [(done.computation, [r.seq for r in done.results]) for done in spool.take("b")] == [
        (2, [2, 3])
    ]
    for number in range(10):
        spool.keep(f"b{number}", [DONE], float(number))
        spool.check()
    assert "b9" in spool and "b0" not in spool
    spool.tick(18.5)
    assert "b9" in spool and "b8" not in spool


def test_what_comes_for_a_computation_that_is_prepared_anew_is_not_lost() -> None:
    stage = Stage()
    stage.take(StartTemplate)
    stage.agent.template_failed(1, "it was killed")
    stage.flush()
    stage.tell(Prepare(1, spec_of()))  # the old one is still being ended
    layer = Code("3.11", JobSpec(0, 0, b"layer"))
    stage.tell(Define(1, [layer]))
    stage.tell(SetCpus(1, 1))
    stage.agent.template_gone(1)
    stage.flush()
    [start] = stage.take(StartTemplate)
    assert [code.pickled.payload for code in start.prepare.spec.layers] == [b"f", b"layer"]
    stage.ready()
    assert len(stage.run(1, 2)) == 1


def test_times_that_are_no_times_change_nothing() -> None:
    stage = Stage(max_tasks=0)
    stage.run(*range(1, 9))
    for run_s in (float("inf"), 1.0, float("nan"), 1.0):
        [task] = stage.agent.workers[1].tasks
        stage.ended(1, task.spec.seq, run_s=run_s)
        stage.wait(HOLD_S)
    assert len(stage.results()) == 4


def test_what_a_node_does_not_take_breaks_the_protocol() -> None:
    stage = Stage()
    with pytest.raises(ProtocolError):
        stage.agent.receive("b", Submit(1, []), stage.now)
