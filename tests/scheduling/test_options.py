"""What only few jobs ask for: an order of their own, a node of their own, several attempts."""

from __future__ import annotations

import pytest

from dispy.broker.turns import CREDIT
from dispy.protocol.messages import (
    ABANDONED,
    ALLOCATE,
    CANCELLED,
    CLOSE,
    FINISHED,
    TERMINATED,
    Body,
    CancelJobs,
    CloseCluster,
    Credit,
    Done,
    Follow,
    FollowJobs,
    Holding,
    Inventory,
    JobOptions,
    JobResult,
    JobSpec,
    JobsRequeued,
    JobsRunning,
    NodeSpec,
    Released,
    Returned,
    Run,
    Started,
    Submit,
    Withdraw,
)
from dispy.protocol.payload import pack_result
from dispy.protocol.wire import chunked

from .stage import CLIENT, Stage, text_of


def test_jobs_may_come_in_any_order_but_only_once() -> None:
    stage = Stage()
    stage.submit(3, 1)
    stage.submit(3, 2, 1)
    stage.node("n", 4)
    assert stage.runs() == {"n": [3, 1, 2]}


def test_jobs_of_higher_priority_go_first() -> None:
    stage = Stage()
    stage.submit(1, 2)
    stage.submit(3, 4, options=JobOptions(priority=5))
    stage.submit(5, options=JobOptions(priority=-1))
    stage.node("n")
    order = stage.runs()["n"]
    for _ in range(4):
        stage.done("n", order[-1])
        order += stage.runs()["n"]
    assert order == [3, 4, 1, 2, 5]


# -- pinned jobs ----------------------------------------------------------------------------


def test_a_pinned_job_waits_for_its_node_while_others_go_elsewhere() -> None:
    stage = Stage()
    one, _ = stage.node("one"), stage.node("two")
    stage.submit(1, 2, 3, options=JobOptions(node=one))
    assert stage.runs() == {"one": [1]}
    stage.submit(4)
    assert stage.runs() == {"two": [4]}
    stage.done("two", 4)
    stage.done("one", 1)
    assert stage.runs() == {"one": [2]}
    stage.tell(CLIENT, CancelJobs(1, [3]))
    assert stage.results() == {1: FINISHED, 4: FINISHED, 3: CANCELLED}


def test_a_pinned_job_waits_until_its_node_is_set_up() -> None:
    stage = Stage()
    one = stage.node("one", ready=False)
    stage.submit(1, options=JobOptions(node=one))
    assert stage.runs() == {}
    stage.prepared()
    assert stage.runs() == {"one": [1]}


def test_pinned_jobs_and_others_share_a_node_by_priority() -> None:
    stage = Stage()
    one = stage.node("one")
    stage.submit(1)
    stage.submit(2, options=JobOptions(node=one))
    stage.submit(3, options=JobOptions(priority=1))
    stage.submit(4, options=JobOptions(priority=2, node=one))
    order = stage.runs()["one"]
    for _ in range(3):
        stage.done("one", order[-1])
        order += stage.runs()["one"]
    assert order == [1, 4, 3, 2]


def test_pinned_jobs_that_wait_leave_room_for_others() -> None:
    stage = Stage()
    one = stage.node("one")
    stage.take(Credit)
    stage.submit(*range(1, CREDIT + 1), options=JobOptions(node=one))
    assert stage.take(Credit)[-1][1].limit >= 2 * CREDIT - 1


def test_a_pinned_job_without_its_node_ends() -> None:
    stage = Stage(nodes=(NodeSpec("used*"), NodeSpec("lost*")))
    lost, unused = stage.node("lost"), stage.node("stranger")
    stage.submit(1, 2, options=JobOptions(node=lost))
    stage.lose("lost")
    stage.submit(3, options=JobOptions(node=lost))
    stage.submit(4, options=JobOptions(node=unused))
    stage.submit(5, options=JobOptions(node=99))
    ends = stage.ends()
    assert {seq: end.status for seq, end in ends.items()} == {
        1: ABANDONED,
        2: ABANDONED,
        3: ABANDONED,
        4: CANCELLED,
        5: CANCELLED,
    }
    assert "no node 99" in text_of(ends[5])


def test_a_pinned_job_is_not_moved_even_if_it_may_be_run_again() -> None:
    stage = Stage(reentrant=True)
    one, _ = stage.node("one"), stage.node("two")
    stage.submit(1, options=JobOptions(node=one, retries=3))
    stage.lose("one")
    assert stage.results() == {1: ABANDONED}


def test_a_pinned_job_ends_with_the_set_up_of_its_node() -> None:
    stage = Stage()
    one = stage.node("one", ready=False)
    stage.submit(1, options=JobOptions(node=one))
    stage.prepared("no such module")
    stage.submit(2, options=JobOptions(node=one))
    ends = stage.ends()
    assert [ends[1].status, ends[2].status] == [TERMINATED, TERMINATED]
    assert "no such module" in text_of(ends[2])


def test_a_pinned_job_that_is_given_back_waits_for_the_same_node() -> None:
    stage = Stage()
    one = stage.node("one")
    stage.submit(*range(1, 12), options=JobOptions(node=one))
    for seq in range(1, 6):
        stage.done("one", seq, run_s=0.005)
    held = stage.runs()["one"]
    stage.node("idle")
    withdraw = stage.one(Withdraw)
    stage.tell("one", Returned(withdraw.computation, [(held[-1], 1)]))
    assert stage.runs() == {"one": [held[-1]]}


def test_a_cluster_with_pinned_jobs_can_be_closed() -> None:
    stage = Stage()
    one = stage.node("one")
    stage.submit(1, 2, options=JobOptions(node=one))
    stage.tell(CLIENT, CloseCluster(1))
    assert stage.results() == {1: CANCELLED, 2: CANCELLED}


# -- retries --------------------------------------------------------------------------------


def test_a_job_that_fails_is_tried_again_while_it_may() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1, options=JobOptions(retries=2))
    for attempt in (1, 2):
        stage.fail("n", 1, attempt)
        assert stage.ends() == {} and stage.one(JobsRequeued).jobs == [1]
    stage.fail("n", 1, 3)
    end = stage.ends()[1]
    assert end.status == TERMINATED
    assert text_of(end).startswith("ValueError: no") and "3 attempts" in text_of(end)
    assert stage.scheduler.late_results == 0


def test_a_job_that_is_tried_again_may_finish() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1, options=JobOptions(retries=1))
    stage.fail("n", 1)
    stage.done("n", 1, attempt=2)
    assert stage.results() == {1: FINISHED}


def test_a_cancelled_job_is_not_tried_again() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1, options=JobOptions(retries=5))
    stage.tell(CLIENT, CancelJobs(1, [1]))
    stage.fail("n", 1)
    assert stage.results() == {1: TERMINATED}


def test_a_lost_node_is_a_failed_attempt() -> None:
    stage = Stage()
    stage.submit(1, options=JobOptions(retries=1))
    for name in ("one", "two"):
        stage.node(name)
        stage.lose(name)
    assert stage.one(JobsRequeued).jobs == [1]
    assert stage.results() == {1: ABANDONED}


def test_an_attempt_that_was_not_lost_after_all_has_not_failed() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1, options=JobOptions(retries=1))
    stage.lose("n")
    stage.join("n")
    stage.tell("n", Holding([stage.number], [(stage.number, 1, 1)]))
    stage.fail("n", 1)
    assert stage.ends() == {}
    stage.fail("n", 1, 2)
    assert "2 attempts" in text_of(stage.ends()[1])


def test_a_large_failure_says_how_many_attempts_there_were() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1, options=JobOptions(retries=1))
    stage.fail("n", 1)
    body = chunked(pack_result(b"", bytes(2 << 20), b"", "ValueError"))
    stage.tell("n", Done(stage.number, [JobResult(1, 2, TERMINATED, 1.0, 2.0, b"", [body])]))
    end = stage.ends()[1]
    assert "2 attempts" in text_of(end) and end.parts[0].size == len(end.parts[0].tobytes())


@pytest.mark.parametrize("nonsense", [b"?", b""])
def test_nonsense_of_a_job_process_is_a_failure_of_that_job_only(nonsense: bytes) -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1, options=JobOptions(retries=1))
    stage.fail("n", 1)
    bad = JobResult(1, 2, TERMINATED, 1.0, 2.0, nonsense)
    stage.tell("n", Done(stage.number, [bad]))
    assert "2 attempts" in text_of(stage.ends()[1])


def test_times_that_are_no_times_change_nothing() -> None:
    stage = Stage()
    stage.node("n", 2)
    stage.submit(*range(1, 9))
    for seq, end in enumerate((float("inf"), 1.0, float("nan"), 1.0), 1):
        stage.tell("n", Done(stage.number, [JobResult(seq, 1, FINISHED, 0.0, end, b"r")]))
    assert stage.results() == dict.fromkeys(range(1, 5), FINISHED)


def test_the_client_is_told_of_running_jobs_that_wait_again() -> None:
    stage = Stage(reentrant=True)
    stage.node("n", 2)
    stage.submit(1, 2)
    stage.tell("n", Started(stage.number, [(1, 1, 1000.0), (2, 7, 1000.0)]))
    assert stage.one(JobsRunning).jobs == [(1, 1000.0)]
    stage.lose("n")
    assert stage.one(JobsRequeued).jobs == [1]
    stage.join("n", 2)
    stage.tell("n", Holding([stage.number], [(stage.number, 1, 1)]))
    assert stage.one(JobsRunning).jobs == [(1, 1000.0)]
    assert (stage.number, 1, 1) in stage.take(Inventory)[-1][1].jobs


def test_closing_a_node_ends_a_pinned_job_that_would_be_tried_again() -> None:
    stage = Stage()
    one = stage.node("one")
    stage.submit(1, options=JobOptions(node=one, retries=5))
    stage.ask(CLOSE, one, terminate=True)
    stage.fail("one", 1)
    assert stage.results() == {1: CANCELLED}
    stage.tell("one", Released(stage.number))
    assert stage.ask(ALLOCATE, one).code == 0


# -- output ---------------------------------------------------------------------------------


def test_a_job_is_followed_wherever_it_is() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1, 2)
    stage.take(Run)
    stage.tell(CLIENT, FollowJobs(1, [1, 2, 3]))
    [(peer, follow)] = stage.take(Follow)
    assert peer == "n" and follow.jobs == [(1, 1)]
    stage.done("n", 1)
    [spec] = stage.one(Run).jobs
    assert spec.options is not None and spec.options.follow


def test_what_was_said_to_a_node_in_vain_is_said_again() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1)
    undelivered: list[Body] = [Follow(stage.number, [(1, 1)]), Run(stage.number, [])]
    node = stage.scheduler.nodes["n"]
    stage.scheduler.joined("n", node.identity, undelivered, node.address, 0.0)
    stage.flush()
    assert stage.one(Follow).jobs == [(1, 1)]


def test_options_travel_to_the_node_untouched() -> None:
    stage = Stage()
    stage.node("n")
    options = JobOptions(timeout=3.0)
    stage.tell(CLIENT, Submit(1, [JobSpec(1, 0, b"x", [], options)]))
    [spec] = stage.one(Run).jobs
    assert spec.options == JobOptions(timeout=3.0)
