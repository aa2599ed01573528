"""The scheduler's decisions, one by one, without sockets or clocks."""

from __future__ import annotations

from typing import Any, TypeVar

import pytest

from dispy.broker.core import CREDIT, LEASE_PULSES, LOSSES_MAX, Scheduler
from dispy.broker.effects import Dial, Send
from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FINISHED,
    TERMINATED,
    Body,
    CancelJobs,
    CloseCluster,
    ClusterClosed,
    ClusterOpened,
    Credit,
    Done,
    Holding,
    Identity,
    JobResult,
    JobSpec,
    Kill,
    NodeSpec,
    NodeTrouble,
    OpenCluster,
    Prepare,
    Prepared,
    Release,
    Released,
    Results,
    Returned,
    Run,
    Submit,
    Withdraw,
)

CLIENT = "client"
Kind = TypeVar("Kind")


class Stage:
    """A scheduler, one client with one cluster, and what was said to whom."""

    def __init__(self, reentrant: bool = False, nodes: tuple[NodeSpec, ...] = ()) -> None:
        self.scheduler = Scheduler()
        self.now = 0.0
        self.sent: list[tuple[str, Body]] = []
        self.dialled: list[str] = []
        self.scheduler.joined(CLIENT, identity("client", CLIENT), [], "", 0.0)
        opened = OpenCluster(
            1, "c", JobSpec(0, 0, b"f"), list(nodes) or [NodeSpec("*")], reentrant, 1, 1.0
        )
        self.tell(CLIENT, opened)

    def tell(self, peer: str, message: Body) -> None:
        self.scheduler.receive(peer, message, self.now)
        self.flush()

    def flush(self) -> None:
        self.scheduler.check()
        for effect in self.scheduler.flush(self.now):
            if isinstance(effect, Send):
                self.sent.append((effect.peer, effect.message))
            elif isinstance(effect, Dial):
                self.dialled.append(effect.address)
        self.scheduler.check()

    def take(self, kind: type[Kind]) -> list[tuple[str, Kind]]:
        """Take out all messages of a kind, with those they went to."""
        taken: list[tuple[str, Kind]] = [
            (peer, message) for peer, message in self.sent if isinstance(message, kind)
        ]
        self.sent = [each for each in self.sent if not isinstance(each[1], kind)]
        return taken

    def node(self, name: str, cpus: int = 1, place: str = "", ready: bool = True) -> None:
        who = identity("node", name, cpus, place)
        self.scheduler.joined(name, who, [], f"127.0.0.1:{cpus}", self.now)
        self.tell(name, Holding([], []))
        if ready:
            for _, prepare in self.take(Prepare):
                self.tell(name, Prepared(prepare.computation))

    def submit(self, *seqs: int) -> None:
        self.tell(CLIENT, Submit(1, [JobSpec(seq, 0, b"x") for seq in seqs]))

    def runs(self) -> dict[str, list[int]]:
        placed: dict[str, list[int]] = {}
        for peer, run in self.take(Run):
            placed.setdefault(peer, []).extend(job.seq for job in run.jobs)
        return placed

    def done(self, node: str, seq: int, run_s: float = 10.0, attempt: int = 1) -> None:
        [number] = self.scheduler.clusters
        result = JobResult(seq, attempt, FINISHED, 1.0, 1.0 + run_s, b"r")
        self.tell(node, Done(number, [result]))

    def results(self) -> dict[int, int]:
        """Return the status of each job that was reported."""
        said = self.take(Results)
        return {result.seq: result.status for _, message in said for result in message.results}


def identity(role: str, name: str, cpus: int = 0, place: str = "") -> Identity:
    return Identity(role, name, name, "0", "3", "Linux", cpus, place)


def test_the_least_loaded_node_gets_the_next_job() -> None:
    stage = Stage()
    stage.node("small", 1)
    stage.node("large", 3)
    stage.submit(1, 2, 3, 4, 5)
    placed = stage.runs()
    assert sorted(map(len, placed.values())) == [1, 3]
    assert len(placed["large"]) == 3
    stage.done("small", placed["small"][0])
    assert stage.runs() == {"small": [5]}


def test_nodes_get_short_jobs_ahead_and_long_ones_not() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(*range(1, 100))
    stage.runs()
    stage.done("n", 1, run_s=10.0)
    assert stage.runs() == {"n": [2]}
    for seq in range(2, 40):
        stage.done("n", seq, run_s=0.001)
    held = next(iter(stage.scheduler.nodes.values())).load
    assert 2 <= held <= 59


def test_what_a_node_holds_ahead_is_taken_back_for_an_idle_one() -> None:
    stage = Stage()
    stage.node("busy")
    stage.submit(*range(1, 12))
    stage.runs()
    for seq in range(1, 6):
        stage.done("busy", seq, run_s=0.005)
    held = [seq for seqs in stage.runs().values() for seq in seqs]
    stage.node("idle")
    [(peer, withdraw)] = stage.take(Withdraw)
    assert peer == "busy" and withdraw.count > 0
    stage.tell("busy", Returned(withdraw.computation, [(held[-1], 1)]))
    assert stage.runs() == {"idle": [held[-1]]}


def test_jobs_of_a_lost_node_are_abandoned() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1, 2)
    stage.scheduler.left("n", "killed")
    stage.flush()
    assert stage.results() == {1: ABANDONED}
    stage.node("other")
    assert stage.runs()["other"] == [2]


def test_jobs_of_a_lost_node_run_again_if_they_may() -> None:
    stage = Stage(reentrant=True)
    stage.node("n")
    stage.submit(1)
    stage.runs()
    stage.scheduler.left("n", "killed")
    stage.node("other")
    assert stage.results() == {}
    [(peer, run)] = stage.take(Run)
    assert peer == "other" and run.jobs[0].attempt == 2


def test_a_job_that_every_node_dies_of_is_given_up() -> None:
    stage = Stage(reentrant=True)
    stage.submit(1)
    for number in range(LOSSES_MAX):
        assert stage.results() == {}
        stage.node(f"n{number}")
        stage.scheduler.left(f"n{number}", "killed")
        stage.flush()
    assert stage.results() == {1: ABANDONED}


def test_a_late_result_of_an_older_attempt_is_dropped() -> None:
    stage = Stage(reentrant=True)
    stage.node("n")
    stage.submit(1)
    stage.scheduler.left("n", "killed")
    stage.node("other")
    stage.node("n")  # back from the dead
    stage.done("n", 1, attempt=1)
    assert stage.results() == {} and stage.scheduler.late_results == 1
    stage.done("other", 1, attempt=2)
    assert stage.results() == {1: FINISHED}


def test_an_abandoned_job_may_finish_once() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1)
    stage.scheduler.left("n", "out of reach")
    stage.flush()
    assert stage.results() == {1: ABANDONED}
    stage.node("n")
    stage.done("n", 1)
    assert stage.results() == {1: FINISHED}
    stage.done("n", 1)
    assert stage.results() == {}


def test_a_node_out_of_reach_keeps_its_jobs_for_its_lease() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1)
    stage.scheduler.away("n", "silent", False, 10.0)
    stage.scheduler.tick(10.0 + LEASE_PULSES * 1.0 - 0.01)
    stage.flush()
    assert stage.results() == {}
    assert stage.scheduler.deadline() == 10.0 + LEASE_PULSES * 1.0
    stage.scheduler.tick(10.0 + LEASE_PULSES * 1.0)
    stage.flush()
    assert stage.results() == {1: ABANDONED}


def test_a_new_process_at_the_same_place_proves_the_old_one_gone() -> None:
    stage = Stage()
    stage.node("old", place="host/port")
    stage.submit(1)
    stage.scheduler.away("old", "silent", False, 0.0)
    stage.node("new", place="host/port")
    assert stage.results() == {1: ABANDONED}
    assert list(stage.scheduler.nodes) == ["new"]


def test_cancelled_jobs_end_at_once_or_at_their_node() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1, 2)
    stage.tell(CLIENT, CancelJobs(1, [1, 2, 3]))
    assert stage.results() == {2: CANCELLED}
    [(peer, kill)] = stage.take(Kill)
    assert peer == "n" and kill.jobs == [(1, 1)]


def test_a_client_may_send_only_what_was_asked_for() -> None:
    stage = Stage()
    [(_, opened)] = stage.take(ClusterOpened)
    assert opened.credit == CREDIT
    stage.submit(*range(1, CREDIT + 1))
    assert stage.take(Credit) == []  # no node has taken any
    stage.node("n", 64)
    [(_, credit)] = stage.take(Credit)[-1:]
    assert credit.limit > CREDIT


def test_jobs_submitted_twice_are_taken_once() -> None:
    stage = Stage()
    stage.submit(1, 2)
    stage.submit(1, 2)
    stage.node("n", 4)
    assert stage.runs() == {"n": [1, 2]}


def test_jobs_end_when_no_node_can_set_the_computation_up() -> None:
    stage = Stage()
    stage.node("n", ready=False)
    stage.submit(1)
    [(_, prepare)] = stage.take(Prepare)
    stage.tell("n", Prepared(prepare.computation, "no such module"))
    [(_, trouble)] = stage.take(NodeTrouble)
    assert "no such module" in trouble.reason
    assert stage.results() == {1: TERMINATED}


def test_a_cluster_is_closed_when_its_nodes_have_cleaned_up() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1, 2)
    stage.tell(CLIENT, CloseCluster(1))
    assert stage.results() == {1: CANCELLED, 2: CANCELLED}
    [(_, release)] = stage.take(Release)
    assert stage.take(ClusterClosed) == []
    stage.tell("n", Released(release.computation))
    assert [message.cluster for _, message in stage.take(ClusterClosed)] == [1]
    assert not stage.scheduler.clusters


def test_only_matching_nodes_are_used_and_addresses_are_dialled() -> None:
    stage = Stage(nodes=(NodeSpec("10.0.0.1", 9701), NodeSpec("node*", 0, 2)))
    assert stage.dialled == ["10.0.0.1:9701"]
    stage.node("stranger", 4, ready=False)
    assert stage.take(Prepare) == []
    stage.node("node7", 4, ready=False)
    [(peer, prepare)] = stage.take(Prepare)
    assert peer == "node7" and prepare.cpus == 2


@pytest.mark.parametrize("message", [Prepared(1), Done(1, []), Holding([], [])])
def test_what_only_a_node_may_say_is_refused_from_a_client(message: Any) -> None:
    with pytest.raises(ProtocolError):
        Stage().tell(CLIENT, message)
