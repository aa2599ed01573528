"""What users have decided about nodes holds after a restart of the broker."""

from __future__ import annotations

from dispy.broker.state import Stage as State
from dispy.protocol.messages import (
    ALLOCATE,
    CLOSE,
    DEALLOCATE,
    SET_CPUS,
    Holding,
    Inventory,
    NodeReady,
    Prepare,
    Release,
    Released,
    Run,
    SetCpus,
)

from .durablestage import DurableStage


def come_back(stage: DurableStage, name: str, *jobs: tuple[int, int], cpus: int = 4) -> None:
    """Have a node that has the computation begin a new session, with these attempts."""
    stage.join(name, cpus)
    stage.tell(name, Holding([stage.number], [(stage.number, *each) for each in jobs]))


def test_so_many_cpus_are_used_as_before() -> None:
    stage = DurableStage()
    node = stage.node("n", 4)
    assert stage.ask(SET_CPUS, node, cpus=2).code == 2
    stage.submit(*range(1, 9))
    assert len(stage.runs()["n"]) == 2
    stage.crash()
    stage.rejoin()
    come_back(stage, "n", (1, 1), (2, 1))
    assert stage.one(SetCpus).cpus == 2
    assert stage.one(NodeReady).cpus == 2
    assert not stage.runs()
    stage.done("n", 1)
    assert stage.runs() == {"n": [3]}


def test_a_closed_node_stays_closed() -> None:
    stage = DurableStage()
    node = stage.node("n", 4)
    stage.ask(CLOSE, node)
    stage.tell("n", Released(stage.number))
    stage.crash()
    stage.rejoin()
    stage.join("n", 4)
    stage.tell("n", Holding([], []))
    stage.submit(1)
    assert not stage.take(Prepare) and not stage.take(Run)
    assert stage.ask(ALLOCATE, node).code == 0
    stage.prepared()
    assert stage.runs() == {"n": [1]}
    stage.crash()
    come_back(stage, "n", (1, 1))
    stage.rejoin()
    assert stage.one(NodeReady).cpus == 4, "it is used again"


def test_a_node_that_is_being_closed_is_released_when_its_jobs_have_ended() -> None:
    stage = DurableStage()
    node = stage.node("n", 4)
    stage.submit(1, 2)
    stage.runs()
    stage.ask(CLOSE, node)
    stage.crash()
    stage.rejoin()
    stage.submit(3)
    come_back(stage, "n", (1, 1), (2, 1))
    assert len(stage.one(Inventory).jobs) == 2
    assert not stage.take(Run) and not stage.take(Release)
    stage.done("n", 1)
    stage.done("n", 2)
    assert len(stage.hear()) == 2
    assert stage.one(Release).computation == stage.number
    stage.tell("n", Released(stage.number))
    [cluster] = stage.scheduler.clusters.values()
    assert cluster.allocations[node].stage is State.CLOSED
    assert not stage.take(Run)


def test_a_node_that_gets_no_jobs_gets_none() -> None:
    stage = DurableStage()
    node = stage.node("n", 4)
    stage.submit(1)
    stage.runs()
    stage.ask(DEALLOCATE, node)
    stage.crash()
    stage.rejoin()
    stage.submit(2)
    come_back(stage, "n", (1, 1))
    assert not stage.runs()
    stage.done("n", 1)
    assert not stage.runs()
    stage.ask(ALLOCATE, node)
    assert stage.runs() == {"n": [2]}
    stage.crash()
    stage.rejoin()
    stage.submit(3)
    come_back(stage, "n", (2, 1))
    assert stage.runs() == {"n": [3]}


def test_an_idle_node_that_gets_no_jobs_gets_none_either() -> None:
    stage = DurableStage()
    stage.ask(DEALLOCATE, stage.node("n", 4))
    stage.crash()
    stage.rejoin()
    come_back(stage, "n")
    stage.submit(1)
    assert not stage.runs()


def test_a_node_that_was_lost_while_it_was_closed_is_not_used_when_it_is_back() -> None:
    stage = DurableStage()
    node = stage.node("n", 4)
    stage.submit(1)
    stage.runs()
    stage.ask(CLOSE, node)
    stage.lose("n")
    stage.submit(2)
    come_back(stage, "n", (1, 1))
    assert stage.one(Release).computation == stage.number
    assert not stage.take(Run) and not stage.take(Prepare)
