"""What a broker has to do for each event stays small with many clients, clusters and nodes."""

from __future__ import annotations

import pytest

from dispy.broker import batches, nodes
from dispy.broker.settings import Settings
from dispy.protocol.messages import NodeVitals, Pulse

from .shared_stage import SharedStage
from .stage import VITALS


def crowd(clients: int, *names: str) -> SharedStage:
    """Return a broker with nodes that all clients use."""
    stage = SharedStage()
    for name in names:
        stage.node(name)
    for number in range(clients):
        stage.client(f"c{number}")
        stage.open(f"c{number}")
    stage.prepared()
    stage.take(NodeVitals)
    return stage


def test_vitals_are_told_less_often_when_that_would_be_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nodes, "PULSES_PER_S", 10)
    stage = crowd(5, "n", "o", "p")
    for name in ("n", "o", "p"):
        stage.tell(name, Pulse(VITALS))
    assert len(stage.take(NodeVitals)) == 15, "a short burst is all right"
    for _ in range(3):
        for name in ("n", "o", "p"):
            stage.tell(name, Pulse(VITALS))
    assert not stage.take(NodeVitals)
    stage.wait(10.0)
    told = stage.take(NodeVitals)
    assert len(told) == 15, "the last word of each node is told, once"
    assert {message.node for _, message in told} == {1, 2, 3}


def test_vitals_of_a_node_that_is_lost_are_not_told() -> None:
    stage = crowd(1, "n")
    stage.scheduler.receive("n", Pulse(VITALS), stage.now)
    stage.lose("n")
    assert not stage.take(NodeVitals)
    assert not stage.scheduler.state.pulsed


def test_only_nodes_that_are_away_are_looked_at_as_time_passes() -> None:
    stage = crowd(1, "n", "o")
    state = stage.scheduler.state
    assert not state.away
    stage.scheduler.away("n", "x", False, stage.now)
    assert [node.peer for node in state.away] == ["n"]
    stage.scheduler.back("n")
    assert not state.away
    stage.scheduler.away("n", "x", False, stage.now)
    stage.wait(100.0)
    assert set(stage.scheduler.nodes) == {"o"} and not state.away


def test_the_jobs_of_many_clusters_are_not_all_in_memory() -> None:
    limit, clients = 200, 8 * batches.CROWD
    stage = SharedStage(Settings(durable=True, shared=True, loaded_jobs=limit))
    stage.node("n", 4)
    for number in range(clients):
        stage.client(f"c{number}")
        stage.open(f"c{number}")
    stage.prepared()
    for number in range(clients):
        for first in range(1, 201, 20):
            stage.give(f"c{number}", *range(first, first + 20))
    in_memory = [len(each.jobs) for each in stage.scheduler.clusters.values()]
    assert sum(in_memory) < 0.6 * clients * limit and min(in_memory) > 0
    assert in_memory[0] == limit, "it was the first to come"
