"""Which node gets which job, and what becomes of it when all goes its usual way or a node dies."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from dispy.broker.hope import GATHER_S
from dispy.broker.jobs import LOSSES_MAX
from dispy.broker.nodes import LEASE_PULSES
from dispy.broker.setups import ONLY_A_RELAY
from dispy.broker.turns import CREDIT
from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FINISHED,
    TERMINATED,
    CancelJobs,
    CloseCluster,
    ClusterClosed,
    ClusterOpened,
    Credit,
    Done,
    Holding,
    Kill,
    NodeReady,
    NodeSpec,
    NodeTrouble,
    Prepare,
    Prepared,
    Release,
    Released,
    Returned,
    Run,
    Withdraw,
)

from .stage import CLIENT, Stage, identity


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


def test_a_client_may_send_as_many_as_are_placed() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(*range(1, CREDIT + 1))
    for seq in range(1, CREDIT + 1):
        stage.done("n", seq)
    assert stage.take(Credit)[-1][1].limit > 1.5 * CREDIT


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
    stage.wait(GATHER_S - 0.01)
    assert stage.results() == {}  # others may be found
    stage.wait(0.02)
    assert stage.results() == {1: TERMINATED}
    stage.submit(2)
    assert stage.results() == {2: TERMINATED}


def test_jobs_end_at_once_when_all_nodes_are_named_and_none_can_set_the_computation_up() -> None:
    stage = Stage(nodes=(NodeSpec("127.0.0.1", 9703),))
    stage.node("one", ready=False)
    stage.submit(1)
    stage.prepared("no such module")
    assert stage.results() == {1: TERMINATED}


def test_a_node_that_is_found_a_moment_after_another_has_failed_gets_the_jobs() -> None:
    stage = Stage()
    stage.submit(1)
    stage.node("bad", ready=False)
    stage.prepared("no such module")
    stage.wait(GATHER_S / 2)
    stage.node("good")
    assert stage.runs() == {"good": [1]}
    stage.wait(GATHER_S)
    assert stage.results() == {}


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


@pytest.mark.parametrize("address", ["", "somewhere", "host:door", "host:9701"])
def test_what_a_node_says_of_its_address_may_be_anything(address: str) -> None:
    stage = Stage(nodes=(NodeSpec("host", 9701), NodeSpec("*", 9702), NodeSpec("*", 9701)))
    who = msgspec.structs.replace(identity("node", "n", 1), address=address)
    stage.scheduler.joined("n", who, [], "", stage.now)
    stage.tell("n", Holding([], []))
    assert len(stage.take(Prepare)) == (address == "host:9701")


@pytest.mark.parametrize(
    "entry", [NodeSpec("10.0.0.7", 9701), NodeSpec("192.0.2.7", 9701), NodeSpec("192.0.*")]
)
def test_a_node_may_be_meant_by_any_of_its_addresses(entry: NodeSpec) -> None:
    stage = Stage(nodes=(entry,))
    own = ["10.0.0.7:9701", "192.0.2.7:9701"]
    who = msgspec.structs.replace(identity("node", "n", 1), address=own[0], addresses=own)
    stage.scheduler.joined("n", who, [], "", stage.now)
    stage.tell("n", Holding([], []))
    [(_, prepare)] = stage.take(Prepare)
    [cluster] = stage.scheduler.clusters.values()
    assert not cluster.untried  # nothing is said of an address that wasn't needed
    stage.tell("n", Prepared(prepare.computation))
    [(_, ready)] = stage.take(NodeReady)
    assert ready.node.addresses == own
    named = f"{entry.pattern}:9701" if entry.port else ""  # a pattern names nobody
    assert ready.named == named


@pytest.mark.parametrize("message", [Prepared(1), Done(1, []), Holding([], [])])
def test_what_only_a_node_may_say_is_refused_from_a_client(message: Any) -> None:
    with pytest.raises(ProtocolError):
        Stage().tell(CLIENT, message)


@pytest.mark.parametrize("answers", [True, False])
def test_a_failed_set_up_ends_no_jobs_while_a_named_node_may_be_slow_to_answer(
    answers: bool,
) -> None:
    stage = Stage(nodes=(NodeSpec("127.0.0.1", 9703), NodeSpec("127.0.0.1", 9704)))
    stage.submit(1)
    stage.node("one", ready=False)
    stage.prepared("no such module")
    assert stage.results() == {}
    if answers:
        stage.node("four")
        assert stage.runs() == {"four": [1]}
    else:
        stage.scheduler.unreachable("127.0.0.1:9704", "connection refused")
        stage.flush()
        assert stage.results() == {}  # somebody may be about to start it
        stage.wait(GATHER_S)
        assert stage.results() == {1: TERMINATED}


def test_a_relay_that_is_named_alone_is_said_to_need_a_pattern() -> None:
    relay = identity("relay", "gate")
    stage = Stage(nodes=(NodeSpec("10.0.0.1", 9701),))
    stage.scheduler.joined("gate", relay, [], "10.0.0.1:9701", stage.now)
    stage.flush()
    trouble = stage.one(NodeTrouble)
    assert (trouble.address, trouble.reason) == ("10.0.0.1:9701", ONLY_A_RELAY)


def test_with_a_pattern_nothing_is_said_of_a_relay() -> None:
    relay = identity("relay", "gate")
    stage = Stage(nodes=(NodeSpec("10.0.0.1", 9701), NodeSpec("*")))
    stage.scheduler.joined("gate", relay, [], "10.0.0.1:9701", stage.now)
    stage.flush()
    assert stage.take(NodeTrouble) == []
    assert not any(cluster.untried for cluster in stage.scheduler.clusters.values())
