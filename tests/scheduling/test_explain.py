"""What users are told when they ask why a job hasn't ended."""

from __future__ import annotations

from dispy.broker.settings import Settings
from dispy.protocol.messages import (
    CLOSE,
    DEALLOCATE,
    Allocate,
    Answer,
    CancelJobs,
    Explain,
    JobOptions,
    NodeSpec,
    Started,
)

from .stage import CLIENT, Stage


def explain(stage: Stage, seq: int) -> str:
    stage.tell(CLIENT, Explain(1, 7, seq))
    answer = stage.one(Answer)
    assert answer.request == 7
    return answer.text


def test_jobs_that_are_not_there() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1, 2)
    stage.done("n", 1)
    assert explain(stage, 1) == "It has ended."
    assert "not been sent to the broker" in explain(stage, 3)
    stage.lose("n")
    assert "Its node was lost" in explain(stage, 2)
    stage.tell(CLIENT, Explain(9, 7, 1))
    assert stage.one(Answer).code == -1


def test_a_job_that_runs() -> None:
    stage = Stage()
    stage.node("n", 2)
    stage.submit(1)
    assert "given to node n (" in explain(stage, 1)
    stage.tell("n", Started(stage.number, [(1, 1, 1000.0)]))
    stage.now = 12.0
    assert "running at node n (127.0.0.1:9701) for 12 s" in explain(stage, 1)
    stage.tell(CLIENT, CancelJobs(1, [1]))
    assert "cancelled" in explain(stage, 1)
    stage.scheduler.away("n", "silent", False, 12.0)
    assert "can't be reached" in explain(stage, 1) and "given up in 5 s" in explain(stage, 1)


def test_a_job_that_waits_for_others() -> None:
    stage = Stage()
    stage.node("n")
    stage.submit(1, 2, 3)
    text = explain(stage, 3)
    assert "1 job of the cluster goes before it" in text
    assert "busy with 1 job of the cluster" in text


def test_no_node_matches() -> None:
    stage = Stage(nodes=(NodeSpec("wanted"), NodeSpec("10.0.0.1", 9701), NodeSpec("10.0.0.2", 1)))
    stage.submit(1)
    stage.node("stranger", ready=False)
    stage.scheduler.unreachable("10.0.0.1:9701", "this node works for someone at present")
    text = explain(stage, 1)
    assert "The cluster has no node." in text
    assert "Node stranger (127.0.0.1:9708) is not among those asked for." in text
    assert "10.0.0.1:9701 can't be used: this node works for someone at present." in text
    assert "no answer from 10.0.0.2:1 yet" in text


def test_a_node_that_the_broker_was_told_to_dial() -> None:
    stage = Stage()
    stage.scheduler.state.settings = Settings(nodes=("127.0.0.1:9701", "10.0.0.1:9701"))
    stage.submit(1)
    for address in ("127.0.0.1:9701", "10.0.0.1:9701", "10.0.0.2:9701"):
        stage.scheduler.unreachable(address, "it works for someone")
    text = explain(stage, 1)
    assert "127.0.0.1:9701 can't be used" in text
    assert "10.0.0.1:9701 can't be used: it works for someone." in text
    assert "10.0.0.2" not in text  # which no cluster asks for any more
    stage.node("n", ready=False)
    assert "127.0.0.1:9701 can't" not in explain(stage, 1)


def test_nodes_that_are_not_set_up() -> None:
    stage = Stage()
    stage.node("n", ready=False)
    stage.submit(1)
    stage.now = 3.0
    assert "has been setting the computation up for 3 s" in explain(stage, 1)
    stage.prepared("no such module")
    stage.node("m", ready=False)
    stage.submit(2)
    assert "could not set the computation up: no such module" in explain(stage, 2)


def test_nodes_that_are_not_used() -> None:
    stage = Stage(asks=True)
    number = stage.node("n")
    stage.submit(1)
    assert "allocate() has not answered" in explain(stage, 1)
    stage.tell(CLIENT, Allocate(1, number, 0))
    assert "allocate() returned 0" in explain(stage, 1)


def test_nodes_that_were_taken_away() -> None:
    stage = Stage()
    number = stage.node("n")
    stage.submit(1, 2)
    stage.ask(DEALLOCATE, number)
    assert "was deallocated" in explain(stage, 2)
    stage.ask(CLOSE, number)
    assert "is being closed" in explain(stage, 2)


def test_pinned_jobs_and_retries() -> None:
    stage = Stage()
    number, _ = stage.node("one"), stage.node("two")
    stage.submit(1, 2, options=JobOptions(node=number, retries=2))
    assert "Only node one (127.0.0.1:9703) may run it." in explain(stage, 2)
    stage.fail("one", 1)
    assert "1 attempt failed; it may fail 1 more time" in explain(stage, 1)


def test_a_long_list_of_nodes_is_cut() -> None:
    stage = Stage(nodes=(NodeSpec("nothing"),))
    for number in range(50):
        stage.node(f"n{number}", ready=False)
    stage.submit(1)
    assert "41 other nodes can't take it either." in explain(stage, 1)
