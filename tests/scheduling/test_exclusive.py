"""Clusters that want all nodes for themselves."""

from __future__ import annotations

from dispy.broker.settings import Settings
from dispy.protocol.messages import (
    ALLOCATE,
    RESETUP,
    SET_CPUS,
    Answer,
    Holding,
    NodeRequest,
    NodeSpec,
    NodeTrouble,
    Prepare,
    SetCpus,
)

from .shared_stage import SharedStage


def shared() -> SharedStage:
    """Return a stage with a node and three clients."""
    stage = SharedStage()
    stage.node("n")
    for name in ("a", "b", "c"):
        stage.client(name, f"{name}@here")
    return stage


def prepared(stage: SharedStage) -> list[int]:
    """Have nodes set up what they were told to; return which clusters that was."""
    told = stage.take(Prepare)
    stage.sent += told
    stage.prepared()
    return [message.computation for _, message in told]


def test_an_exclusive_cluster_waits_for_those_before_it() -> None:
    stage = shared()
    stage.open("a")
    first = stage.cluster("a").id
    assert prepared(stage) == [first]
    stage.open("b", exclusive=True)
    trouble = stage.one(NodeTrouble)
    assert trouble.address == "broker" and "until another cluster has been closed" in trouble.reason
    stage.give("a", 1)
    stage.give("b", 1)
    assert prepared(stage) == [] and stage.runs() == {"n": [1]}
    second = stage.cluster("b").id
    stage.close("a")
    assert prepared(stage) == [second] and stage.runs() == {"n": [1]}


def test_what_is_opened_after_an_exclusive_cluster_waits_for_it() -> None:
    stage = shared()
    stage.open("b", exclusive=True, label="mine")
    assert prepared(stage) == [stage.cluster("b").id] and stage.take(NodeTrouble) == []
    stage.open("a")
    assert "exclusive cluster 'mine' of b@here" in stage.one(NodeTrouble).reason
    stage.open("c")
    assert prepared(stage) == []
    stage.node("late", ready=False)
    assert prepared(stage) == [stage.cluster("b").id]
    stage.close("b")
    assert set(prepared(stage)) == {stage.cluster("a").id, stage.cluster("c").id}
    assert not stage.scheduler.state.exclusives


def test_exclusive_clusters_have_their_turns_in_order() -> None:
    stage = shared()
    for name in ("a", "b"):
        stage.open(name, exclusive=True)
    stage.open("c")
    order = prepared(stage)
    for name in ("a", "b"):
        stage.close(name)
        order += prepared(stage)
    assert order == sorted(order) and len(order) == 3


def test_a_waiting_cluster_may_be_closed() -> None:
    stage = shared()
    stage.open("a")
    stage.open("b", exclusive=True)
    stage.open("c")
    prepared(stage)
    stage.close("b")
    assert prepared(stage) == [stage.cluster("c").id]


def test_a_waiting_cluster_gets_no_node_by_request() -> None:
    stage = shared()
    stage.open("a", exclusive=True)
    stage.open("b")
    prepared(stage)
    node = stage.scheduler.nodes["n"].id
    stage.tell("b", NodeRequest(1, 1, ALLOCATE, node))
    stage.tell("b", NodeRequest(1, 2, ALLOCATE, nodes=[NodeSpec("n")]))
    assert [message.code for _, message in stage.take(Answer)] == [-1, 0]
    assert prepared(stage) == []


def test_a_client_in_a_new_session_is_told_again_that_its_cluster_waits() -> None:
    stage = shared()
    stage.open("a", exclusive=True)
    stage.open("b")
    stage.take(NodeTrouble)
    stage.client("b", "b@here")
    stage.open("b")
    assert "exclusive" in stage.one(NodeTrouble).reason


def test_a_cluster_that_was_given_up_waits_when_it_is_used_again() -> None:
    settings = Settings(durable=True, shared=True, client_lease_s=100.0)
    stage = SharedStage(settings)
    stage.node("n")
    stage.client("a")
    stage.open("a")
    prepared(stage)
    stage.give("a", 1)
    number = stage.cluster("a").id
    stage.client("b")
    stage.open("b", exclusive=True)
    stage.go_away("a")
    stage.wait(100.0)
    assert prepared(stage) == []  # the node isn't free so far
    stage.release(number)
    second = stage.cluster("b").id
    assert prepared(stage) == [second]
    stage.client("a")
    stage.open("a")
    assert prepared(stage) == [] and stage.cluster("a").waits
    stage.close("b")
    assert prepared(stage) == [number]


def test_a_cluster_that_comes_back_before_its_nodes_are_released_keeps_its_turn() -> None:
    stage = SharedStage(Settings(durable=True, shared=True, client_lease_s=100.0))
    stage.node("n")
    stage.client("a")
    stage.open("a", exclusive=True)
    prepared(stage)
    stage.give("a", 1)
    stage.client("b")
    stage.open("b", exclusive=True)
    stage.go_away("a")
    stage.wait(100.0)
    stage.client("a")
    stage.open("a")
    stage.release(stage.cluster("a").id)
    assert prepared(stage) == [stage.cluster("a").id] and stage.cluster("b").waits


def test_the_order_is_kept_over_a_start() -> None:
    stage = shared()
    stage.open("a")
    stage.open("b", exclusive=True)
    stage.open("c")
    prepared(stage)
    stage.restart()
    assert [each.waits for each in stage.scheduler.clusters.values()] == [False, True, True]
    for name in ("a", "b", "c"):
        stage.client(name, f"{name}@here")
        stage.open(name)
    assert len(stage.take(NodeTrouble)) == 2
    stage.join("n")
    stage.tell("n", Holding([], []))
    for name in ("a", "b", "c"):
        assert prepared(stage) == [stage.cluster(name).id]
        stage.close(name)


def test_an_exclusive_cluster_that_was_taken_over_holds_nobody_up_idle() -> None:
    stage = shared()
    stage.open("a", 1, exclusive=True)
    stage.open("a", 2, exclusive=True)
    stage.open("a", 3)
    first, second, third = (stage.cluster("a", number).id for number in (1, 2, 3))
    prepared(stage)
    for number in (1, 2, 3):
        stage.give("a", 1, number=number)
    stage.finish("n", first, 1)
    assert prepared(stage) == []  # its program may submit more
    stage.go_away("a")
    for number in (1, 2, 3):
        stage.attach("b", number, owner="a", number=number)
    assert prepared(stage) == [second]
    stage.finish("n", second, 1)
    assert prepared(stage) == [third]
    stage.finish("n", third, 1)
    for number in (3, 2, 1):
        stage.close("b", number)
    assert not stage.scheduler.clusters and not stage.scheduler.state.exclusives


def test_it_holds_nobody_up_after_a_start_either() -> None:
    stage = shared()
    stage.open("a", 1, exclusive=True)
    stage.open("a", 2)
    prepared(stage)
    stage.give("a", 1, number=2)
    stage.go_away("a")
    stage.attach("b", 1, owner="a", number=1)
    stage.attach("b", 2, owner="a", number=2)
    stage.restart()
    stage.join("n")
    stage.tell("n", Holding([], []))
    assert stage.cluster("b", 2).id in prepared(stage)
    stage.client("c")
    stage.open("c", exclusive=True)
    assert prepared(stage) == []
    stage.close("b", 1)
    stage.close("b", 2)
    assert prepared(stage) == [stage.cluster("c").id]


def test_cpus_of_shared_nodes_are_not_for_everyone_to_set() -> None:
    stage = shared()
    stage.open("a", exclusive=True)
    prepared(stage)
    node = stage.scheduler.nodes["n"].id
    stage.tell("a", NodeRequest(1, 1, SET_CPUS, node, cpus=1))
    assert stage.one(Answer).code == 1 and len(stage.take(SetCpus)) == 1
    stage.close("a")
    stage.open("b")
    prepared(stage)
    stage.tell("b", NodeRequest(1, 1, SET_CPUS, node, cpus=1))
    answer = stage.one(Answer)
    assert answer.code == -1 and "--cooperative" in answer.text
    stage.tell("b", NodeRequest(1, 2, RESETUP, node))
    assert stage.one(Answer).code == -1


def test_a_cooperative_broker_lets_clients_set_cpus() -> None:
    stage = SharedStage(Settings(durable=True, shared=True, cooperative=True))
    stage.node("n")
    stage.client("a")
    stage.open("a")
    prepared(stage)
    stage.tell("a", NodeRequest(1, 1, SET_CPUS, stage.scheduler.nodes["n"].id, cpus=1))
    assert stage.one(Answer).code == 1


def test_nodes_that_came_by_themselves_or_always_belong_stay() -> None:
    address = "127.0.0.1:9701"
    stage = SharedStage(Settings(durable=True, shared=True, nodes=(address,)))
    stage.client("a")
    stage.open("a", nodes=[NodeSpec("127.0.0.1", 9701), NodeSpec("127.0.0.1", 9703)])
    stage.node("n")  # dialled, at the first address
    stage.node("two", ready=False)  # ... at the second
    stage.prepared()
    assert stage.dialled == [address, "127.0.0.1:9703"]
    stage.close("a")
    assert stage.undialled == ["127.0.0.1:9703"] and stage.dismissed == ["two"]
