"""The agent's decisions, one by one, without processes or clocks."""

from __future__ import annotations

from typing import TypeVar

from dispy.node.core import BLOCKED_S, FALSE_STARTS_MAX, LEASE_S, LONG_S, STEP_S, Agent
from dispy.node.effects import (
    Destroy,
    Effect,
    Give,
    Interrupt,
    Revoke,
    Send,
    Spawn,
    StartTemplate,
    StopTemplate,
    Terminate,
)
from dispy.protocol.messages import (
    CANCELLED,
    FINISHED,
    TERMINATED,
    Body,
    Done,
    Holding,
    Identity,
    Inventory,
    JobResult,
    JobSpec,
    Kill,
    Prepare,
    Prepared,
    Release,
    Released,
    Returned,
    Run,
    Started,
    Withdraw,
)

BROKER = Identity("broker", "b", "broker", "0", "3", "Linux")
NO_OUTPUT = (b"", b"")
Kind = TypeVar("Kind")


class Stage:
    """An agent of two CPUs that works for a broker, with one computation that is ready."""

    def __init__(self, max_tasks: int = 1, cpus: int = 2) -> None:
        self.agent = Agent(cpus)
        self.now = 100.0
        self.effects: list[Effect] = []
        self.agent.joined("b", BROKER, [], self.now)
        self.tell(Prepare(1, "c", JobSpec(0, 0, b"f"), max_tasks, 1.0))
        self.agent.template_ready(1)
        self.flush()

    def tell(self, message: Body) -> None:
        self.agent.receive("b", message, self.now)
        self.flush()

    def flush(self) -> None:
        self.agent.check()
        self.effects += self.agent.flush(self.now)
        self.agent.check()

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


def test_short_jobs_go_in_batches_to_processes_that_are_reused() -> None:
    stage = Stage(max_tasks=0)
    given = stage.run(*range(1, 9))
    assert sorted(map(len, given.values())) == [1, 1]  # how long they take is not known yet
    worker = next(iter(given))
    stage.ended(worker, *given[worker], run_s=1e-5)
    assert max(map(len, stage.given().values())) > 1


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
    other = Identity("broker", "other", "another", "0", "3", "Linux")
    assert "works for broker" in stage.agent.admit(other, stage.now)
    stage.agent.away("b", stage.now)
    assert "waits" in stage.agent.admit(other, stage.now + LEASE_S - 1)
    assert stage.agent.admit(other, stage.now + LEASE_S + 1) == ""
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
