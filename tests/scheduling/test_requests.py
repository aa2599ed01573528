"""What clients ask about nodes: to use them, to stop using them, and how much."""

from __future__ import annotations

import pytest

from dispy.broker.hope import GATHER_S
from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    ALLOCATE,
    CANCELLED,
    CLOSE,
    DEALLOCATE,
    DISCOVER,
    FINISHED,
    RESETUP,
    SET_CPUS,
    TERMINATED,
    Allocate,
    CloseCluster,
    ClusterClosed,
    Done,
    FileSpec,
    Holding,
    JobOptions,
    JobResult,
    JobSpec,
    Kill,
    NodeGone,
    NodeOffer,
    NodeReady,
    NodeRequest,
    NodeSpec,
    OpenCluster,
    Prepare,
    Release,
    Released,
    Results,
    Returned,
    SetCpus,
    Withdraw,
)

from .stage import CLIENT, VITALS, Stage

FILE = FileSpec("data", b"d" * 32, 10)
ARGS = JobSpec(0, 0, b"args")


# -- a node's part --------------------------------------------------------------------------


def test_files_and_arguments_of_an_entry_go_to_its_nodes_only() -> None:
    stage = Stage(nodes=(NodeSpec("one", 0, 0, [FILE], ARGS), NodeSpec("*")))
    stage.node("one", ready=False)
    stage.node("two", ready=False)
    prepares = dict(stage.take(Prepare))
    assert prepares["one"].files == [FILE] and prepares["one"].setup_args == ARGS
    assert prepares["two"].files == [] and prepares["two"].setup_args is None


def test_the_client_decides_about_nodes_that_are_offered() -> None:
    stage = Stage(asks=True)
    stage.join("n", 4)
    stage.tell("n", Holding([], [], VITALS))
    offer = stage.one(NodeOffer)
    assert offer.node.name == "n" and offer.vitals == VITALS
    assert stage.take(Prepare) == []
    stage.tell(CLIENT, Allocate(1, offer.node.id, 2, [FILE], ARGS))
    prepare = stage.one(Prepare)
    assert (prepare.cpus, prepare.files, prepare.setup_args) == (2, [FILE], ARGS)
    stage.tell(CLIENT, Allocate(1, offer.node.id, 4))
    assert stage.take(Prepare) == []  # it was no answer


def test_a_node_that_the_client_refuses_is_not_offered_again() -> None:
    stage = Stage(asks=True)
    number = stage.node("n")
    stage.take(NodeOffer)
    stage.submit(1, options=JobOptions(node=number))
    stage.tell(CLIENT, Allocate(1, number, 0))
    assert stage.results() == {1: CANCELLED}
    stage.lose("n")
    stage.node("n")
    assert stage.take(NodeOffer) == [] == stage.take(Prepare)
    stage.ask(ALLOCATE, stage.scheduler.nodes["n"].id)
    assert len(stage.take(NodeOffer)) == 1
    stage.tell(CLIENT, CloseCluster(1))
    assert stage.take(Release) == [] and len(stage.take(ClusterClosed)) == 1


def test_a_node_that_comes_back_keeps_its_part() -> None:
    stage = Stage(asks=True)
    number = stage.node("n", 4)
    stage.tell(CLIENT, Allocate(1, number, 2))
    stage.prepared()
    stage.lose("n")
    stage.join("n", 4)
    stage.tell("n", Holding([stage.number], []))
    assert stage.take(NodeReady)[-1][1].cpus == 2


def test_a_client_with_a_new_session_is_told_of_its_nodes_again() -> None:
    stage = Stage()
    stage.node("n")
    stage.take(NodeReady)
    stage.tell(CLIENT, stage.opening)
    assert stage.one(NodeReady).node.name == "n"
    stage = Stage(asks=True)
    stage.node("n")
    stage.tell(CLIENT, stage.opening)
    assert len(stage.take(NodeOffer)) == 2


# -- using nodes ----------------------------------------------------------------------------


def test_allocate_adds_to_what_the_cluster_asks_for() -> None:
    stage = Stage(nodes=(NodeSpec("first"),))
    stage.node("late", 4, ready=False)
    assert stage.take(Prepare) == []
    wanted = [NodeSpec("late", 0, 3), NodeSpec("10.0.0.9", 9701)]
    assert stage.ask(ALLOCATE, nodes=wanted).code == 0
    assert stage.dialled == ["10.0.0.9:9701"]
    assert stage.one(Prepare).cpus == 3
    stage.tell(CLIENT, CloseCluster(1))
    stage.tell("late", Released(stage.number))
    assert stage.undialled == ["10.0.0.9:9701"]


def test_allocate_takes_any_node_by_its_number() -> None:
    stage = Stage(nodes=(NodeSpec("first"),))
    number = stage.node("other", 4, ready=False)
    assert stage.ask(ALLOCATE, number).code == 0
    assert stage.one(Prepare).cpus == 4
    assert stage.ask(ALLOCATE, 99).code == -1
    assert stage.ask(ALLOCATE).code == -1


def test_nodes_may_be_offered_from_a_later_request_on() -> None:
    stage = Stage(nodes=(NodeSpec("first"),))
    stage.node("late", ready=False)
    stage.ask(ALLOCATE, nodes=[NodeSpec("late")], asks=True)
    assert stage.take(Prepare) == [] and len(stage.take(NodeOffer)) == 1


def test_discover_only_dials() -> None:
    stage = Stage(nodes=(NodeSpec("first"),))
    assert stage.ask(DISCOVER, nodes=[NodeSpec("10.0.0.9", 9701)]).code == 0
    assert stage.ask(DISCOVER, nodes=[NodeSpec("10.0.0.9", 9701)]).code == 0
    assert stage.dialled == ["10.0.0.9:9701"]
    stage.node("stranger", ready=False)
    assert stage.take(Prepare) == []
    stage.tell(CLIENT, CloseCluster(1))
    assert stage.undialled == ["10.0.0.9:9701"]


def test_a_deallocated_node_finishes_and_is_resumed() -> None:
    stage = Stage()
    number = stage.node("n")
    stage.submit(1, 2)
    assert stage.ask(DEALLOCATE, number).code == 0
    stage.tell("n", Returned(stage.number, []))
    stage.done("n", 1)
    assert stage.runs() == {"n": [1]}
    assert stage.take(NodeGone) == [] == stage.take(Release)
    assert stage.ask(ALLOCATE, number).code == 0
    assert stage.runs() == {"n": [2]}
    assert stage.take(Prepare) == []


def test_a_deallocated_node_gives_back_what_it_has_not_begun() -> None:
    stage = Stage()
    number = stage.node("n")
    stage.submit(*range(1, 12))
    for seq in range(1, 6):
        stage.done("n", seq, run_s=0.005)
    held = stage.runs()["n"]
    stage.ask(DEALLOCATE, number)
    withdraw = stage.one(Withdraw)
    stage.tell("n", Returned(stage.number, [(seq, 1) for seq in held[-2:]]))
    assert withdraw.count >= 2 and stage.runs() == {}
    stage.node("other")
    assert stage.runs()["other"][:2] == held[-2:]


def test_a_node_may_be_deallocated_before_it_is_ready() -> None:
    stage = Stage()
    number = stage.node("n", ready=False)
    stage.submit(1)
    stage.ask(DEALLOCATE, number)
    stage.prepared()
    assert stage.runs() == {}
    stage.ask(ALLOCATE, number)
    assert stage.runs() == {"n": [1]}


# -- closing them ---------------------------------------------------------------------------


def test_a_closed_node_finishes_its_jobs_then_cleans_up() -> None:
    stage = Stage()
    number = stage.node("n")
    stage.submit(1, 2)
    stage.submit(3, options=JobOptions(node=number))
    assert stage.ask(CLOSE, number).code == 0
    assert stage.results() == {3: CANCELLED}
    assert stage.take(Release) == [] == stage.take(Kill)
    stage.done("n", 1)
    assert not stage.one(Release).keep
    assert stage.take(NodeGone) == []
    stage.tell("n", Released(stage.number))
    assert stage.one(NodeGone).node == number
    assert stage.runs() == {"n": [1]} and stage.results() == {1: FINISHED}
    stage.submit(4, options=JobOptions(node=number))
    assert stage.results() == {4: CANCELLED}


def test_a_closed_node_is_set_up_anew_when_it_is_allocated() -> None:
    stage = Stage()
    number = stage.node("n")
    stage.ask(CLOSE, number)
    stage.tell("n", Released(stage.number))
    stage.ask(CLOSE, number)
    stage.submit(1)
    stage.join("n")
    stage.tell("n", Holding([], []))
    assert stage.take(Prepare) == []  # not by itself, even in a new session
    assert stage.ask(ALLOCATE, number).code == 0
    stage.prepared()
    assert stage.runs() == {"n": [1]} and len(stage.take(NodeReady)) == 2


def test_closing_may_end_what_runs() -> None:
    stage = Stage()
    number = stage.node("n")
    stage.submit(1)
    stage.ask(CLOSE, number, terminate=True)
    assert stage.one(Kill).jobs == [(1, 1)]
    stage.fail("n", 1)
    assert stage.results() == {1: TERMINATED}
    assert len(stage.take(Release)) == 1


@pytest.mark.parametrize("action", [CLOSE, RESETUP])
def test_what_has_not_begun_is_not_ended_with_its_node(action: str) -> None:
    stage = Stage()
    number = stage.node("n", 2)
    stage.submit(1, 2)
    assert stage.runs() == {"n": [1, 2]}
    stage.node("other", ready=False)
    stage.ask(action, number, terminate=True)
    assert stage.one(Kill).jobs == [(1, 1), (2, 1)]
    stage.fail("n", 1)
    # Its process had it, but had not come to it.
    stage.tell("n", Done(stage.number, [JobResult(2, 1, CANCELLED, 0.0, 0.0, b"")]))
    assert stage.results() == {1: TERMINATED}
    stage.prepared()
    assert stage.runs() == {"other": [2]}


def test_closing_goes_on_after_a_new_session() -> None:
    stage = Stage()
    number = stage.node("n", 2)
    stage.submit(1, 2)
    stage.ask(CLOSE, number, terminate=True)
    stage.take(Kill)
    stage.join("n", 2)
    stage.tell("n", Holding([stage.number], [(stage.number, 1, 1)]))
    assert stage.one(Kill).jobs == [(1, 1)]
    stage.fail("n", 1)
    stage.take(Release)
    stage.join("n", 2)
    stage.tell("n", Holding([stage.number], []))
    assert len(stage.take(Release)) == 1
    stage.join("n", 2)
    stage.tell("n", Holding([], []))
    assert len(stage.take(NodeGone)) == 1
    assert stage.take(Prepare) == []


def test_a_node_that_is_lost_while_it_is_closed_is_gone() -> None:
    stage = Stage()
    number = stage.node("n")
    stage.submit(1)
    stage.ask(CLOSE, number)
    stage.lose("n")
    assert stage.one(NodeGone).node == number
    assert stage.ask(CLOSE, number).code == -1


def test_a_closed_cluster_does_not_wait_for_closed_nodes() -> None:
    stage = Stage()
    number = stage.node("n")
    stage.ask(CLOSE, number)
    stage.tell("n", Released(stage.number))
    stage.take(Release)
    stage.tell(CLIENT, CloseCluster(1))
    assert stage.take(Release) == [] and len(stage.take(ClusterClosed)) == 1


def test_jobs_end_when_the_only_node_left_was_closed_and_the_others_failed() -> None:
    stage = Stage()
    number = stage.node("n")
    stage.node("bad", ready=False)
    stage.prepared("no such module")
    stage.submit(1, 2)
    stage.ask(CLOSE, number)
    stage.done("n", 1)
    assert stage.results() == {1: FINISHED}
    stage.tell("n", Released(stage.number))
    stage.wait(GATHER_S)
    assert stage.results() == {2: TERMINATED}


# -- anew, and how much -----------------------------------------------------------------------


def test_a_node_is_set_up_anew_when_its_jobs_have_ended() -> None:
    stage = Stage()
    number = stage.node("n")
    stage.submit(1, 2)
    stage.submit(3, options=JobOptions(node=number))
    assert stage.ask(RESETUP, number).code == 0
    stage.done("n", 1)
    assert stage.one(Release).keep
    stage.tell("n", Released(stage.number))
    assert stage.runs() == {"n": [1]}
    stage.prepared()
    assert stage.runs() == {"n": [3]}
    assert stage.take(NodeGone) == [] and len(stage.take(NodeReady)) == 2


def test_a_node_that_was_deallocated_gets_jobs_when_it_was_set_up_anew() -> None:
    stage = Stage()
    number = stage.node("n")
    stage.ask(DEALLOCATE, number)
    stage.ask(RESETUP, number)
    stage.tell("n", Released(stage.number))
    stage.prepared()
    stage.submit(1)
    assert stage.runs() == {"n": [1]}


def test_a_node_that_is_set_up_anew_is_offered_again() -> None:
    stage = Stage(asks=True)
    number = stage.node("n", 4)
    stage.tell(CLIENT, Allocate(1, number, 2))
    stage.prepared()
    stage.ask(RESETUP, number)
    stage.tell("n", Released(stage.number))
    assert len(stage.take(NodeOffer)) == 2
    stage.tell(CLIENT, Allocate(1, number, 3))
    assert stage.one(Prepare).cpus == 3


def test_a_node_may_be_closed_while_it_is_set_up_anew() -> None:
    stage = Stage()
    number = stage.node("n")
    stage.ask(RESETUP, number)
    stage.submit(1, options=JobOptions(node=number))
    stage.ask(CLOSE, number)
    assert stage.results() == {1: CANCELLED}
    stage.tell("n", Released(stage.number))
    assert stage.take(Prepare) == [] and len(stage.take(NodeGone)) == 1
    stage.ask(RESETUP, number)
    assert len(stage.take(Prepare)) == 1


def test_a_node_that_the_client_does_not_want_any_more_is_told_to_be_gone() -> None:
    stage = Stage(asks=True)
    number = stage.node("n")
    stage.tell(CLIENT, Allocate(1, number, 1))
    stage.prepared()
    assert stage.take(NodeGone) == []
    stage.ask(RESETUP, number)
    stage.tell("n", Released(stage.number))
    stage.tell(CLIENT, Allocate(1, number, 0))
    assert [gone.node for _, gone in stage.take(NodeGone)] == [number]
    assert stage.ask(ALLOCATE, number).code == 0
    stage.tell(CLIENT, Allocate(1, number, 0))
    assert stage.take(NodeGone) == []


def test_a_closed_node_that_has_left_is_used_once_it_is_back_if_that_is_asked_for() -> None:
    for ask_first in (False, True):
        stage = Stage()
        number = stage.node("n")
        stage.ask(CLOSE, number)
        stage.tell("n", Released(stage.number))
        stage.lose("n")
        if ask_first:
            assert stage.ask(ALLOCATE, number).code == 0
        stage.node("n", ready=False)
        assert len(stage.take(Prepare)) == ask_first
        if not ask_first:
            assert stage.ask(ALLOCATE, number).code == 0
            assert len(stage.take(Prepare)) == 1


def test_the_number_of_cpus_is_set() -> None:
    stage = Stage()
    number = stage.node("n", 4)
    assert stage.ask(SET_CPUS, number, cpus=2).code == 2
    assert stage.one(SetCpus).cpus == 2
    stage.submit(*range(1, 6))
    assert stage.runs() == {"n": [1, 2]}
    assert stage.ask(SET_CPUS, number, cpus=-1).code == 3
    assert stage.runs() == {"n": [3]}
    assert stage.ask(SET_CPUS, number, cpus=-4).code == -1
    assert stage.ask(SET_CPUS, number, cpus=0).code == -1
    assert stage.ask(SET_CPUS, 99, cpus=1).code == -1
    stage.take(SetCpus)
    stage.join("n", 4)
    held = [(stage.number, seq, 1) for seq in (1, 2, 3)]
    stage.tell("n", Holding([stage.number], held))
    assert stage.one(SetCpus).cpus == 3  # the node may have missed it


def test_requests_about_nothing_are_answered_and_nonsense_is_refused() -> None:
    stage = Stage()
    for action in (DEALLOCATE, CLOSE, RESETUP, SET_CPUS):
        assert stage.ask(action, 7).code == -1
    with pytest.raises(ProtocolError):
        stage.ask("eat", 7)
    number = stage.node("n")
    stage.tell(CLIENT, CloseCluster(1))
    assert stage.ask(ALLOCATE, number).code == -1
    stage.tell(CLIENT, OpenCluster(2, stage.opening.computation, [NodeSpec("*")]))
    stage.tell(CLIENT, NodeRequest(2, 9, CLOSE, number))
    assert stage.take(Results) == []
