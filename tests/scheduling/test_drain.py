"""Nodes that get no jobs for a while: drained by people, or out of service by their own word."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dispy.broker.core import Scheduler
from dispy.broker.durable import NodeMeta
from dispy.broker.nodes import recall
from dispy.broker.settings import Settings
from dispy.protocol.messages import (
    ABANDONED,
    ALLOCATE,
    DRAIN,
    FINISHED,
    RESUME,
    WHY,
    Done,
    Holding,
    JobOptions,
    JobResult,
    NodeGone,
    NodeReady,
    NodeSpec,
    NodeTrouble,
    Prepare,
    Returned,
    Run,
    Service,
    Withdraw,
)

from .operators import SharedStage
from .stage import CLIENT, identity


def test_a_drained_node_gets_no_jobs() -> None:
    stage = SharedStage()
    stage.node("a")
    stage.submit(1, 2, 3)
    assert stage.runs() == {"a": [1]}
    report = stage.operate(DRAIN, "a", reason="new disk")
    assert report.error == "" and "1 job may still run there" in report.text
    assert stage.state_of("a") == ("drained", "new disk")
    stage.done("a", 1)
    assert stage.results() == {1: FINISHED}
    assert stage.runs() == {}
    stage.node("b")
    assert stage.runs() == {"b": [2]}
    assert stage.operate(RESUME, "a").error == ""
    assert stage.runs() == {"a": [3]}
    assert stage.state_of("a") == ("up", "")


def test_what_has_not_begun_is_taken_back() -> None:
    stage = SharedStage()
    stage.node("a")
    stage.submit(*range(1, 101))
    stage.done("a", 1, run_s=0.001)
    for seq in range(2, 12):  # jobs are short: the node gets some ahead
        stage.done("a", seq, run_s=0.001)
    held = stage.report_of("a").held
    assert held > 1 and stage.report_of("a").running == 1
    stage.take(Run)
    stage.operate(DRAIN, "a")
    [(peer, withdraw)] = stage.take(Withdraw)
    assert (peer, withdraw.count) == ("a", held)
    jobs = list(next(iter(stage.scheduler.clusters.values())).jobs.values())
    given = [job.spec for job in jobs if job.allocation is not None]
    stage.tell("a", Returned(stage.number, [(each.seq, each.attempt) for each in given[1:]]))
    assert stage.report_of("a").held == 1
    assert len(stage.take(Withdraw)) == 1  # until it has no more to give back
    stage.tell("a", Returned(stage.number, []))
    assert not stage.take(Withdraw) and not stage.take(Run)


def test_a_node_that_was_away_when_it_was_drained() -> None:
    stage = SharedStage()
    stage.node("a")
    stage.submit(1)
    stage.take(Run)
    stage.scheduler.away("a", "silent", False, 0.0)
    stage.operate(DRAIN, "a")
    stage.take(Withdraw)  # which is lost with the session
    stage.join("a")
    stage.tell("a", Holding([stage.number], [(stage.number, 1, 1)]))
    assert [(peer, each.count) for peer, each in stage.take(Withdraw)] == [("a", 1)]
    assert stage.report_of("a").held == 1


def test_clients_are_told_once_and_keep_the_node() -> None:
    stage = SharedStage()
    stage.node("a")
    stage.take(NodeTrouble)
    stage.operate(DRAIN, "a", reason="moved")
    stage.operate(DRAIN, "a", reason="moved")
    [(peer, trouble)] = stage.take(NodeTrouble)
    assert (peer, trouble.reason) == (CLIENT, "drained: moved")
    assert not stage.take(NodeGone)
    stage.operate(RESUME, "a")
    stage.operate(DRAIN, "a", reason="moved")
    assert len(stage.take(NodeTrouble)) == 1


def test_a_new_cluster_waits_for_a_drained_node() -> None:
    stage = SharedStage()
    stage.node("a")
    stage.operate(DRAIN, "a")
    number = stage.open(2)
    assert not stage.take(Prepare)
    assert stage.take(NodeTrouble)[-1][1].cluster == 2
    stage.submit_to(2, 1)
    text = stage.operate(WHY, str(number), (1,)).text
    assert "Node a (127.0.0.1:9701) gets no jobs: drained: by an operator." in text
    stage.operate(RESUME, "a")
    stage.prepare()
    assert stage.runs() == {"a": [1]}


def test_a_node_that_was_setting_up_gets_no_jobs_either() -> None:
    stage = SharedStage()
    stage.node("a", ready=False)
    stage.submit(1)
    stage.operate(DRAIN, "a")
    stage.prepared()
    assert stage.runs() == {}
    stage.operate(RESUME, "a")
    assert stage.runs() == {"a": [1]}


def test_a_job_for_this_node_only_waits() -> None:
    stage = SharedStage()
    number = stage.node("a")
    stage.operate(DRAIN, "a")
    stage.submit(1, options=JobOptions(node=number))
    assert stage.runs() == {} and stage.results() == {}
    assert "gets no jobs: drained" in stage.operate(WHY, "c", (1,)).text
    stage.operate(RESUME, "a")
    assert stage.runs() == {"a": [1]}


def test_a_node_stays_drained_where_it_is_started_anew() -> None:
    stage = SharedStage(durable=True)
    first = stage.node("a", place="here")
    assert stage.kept_nodes() == {first: ""}
    stage.operate(DRAIN, "a", reason="noisy")
    assert stage.kept_nodes() == {first: "noisy"}
    stage.lose("a")
    assert stage.kept_nodes() == {first: "noisy"}
    assert stage.state_of("a") == ("away", "not registered; drained: noisy")
    stage.join("again", place="here")
    stage.tell("again", Holding([], []))
    assert not stage.take(Prepare)[1:]
    assert stage.state_of("again") == ("drained", "noisy")
    second = stage.scheduler.nodes["again"].id
    assert stage.kept_nodes() == {second: "noisy"}
    stage.operate(RESUME, "again")
    assert stage.kept_nodes() == {second: ""}
    stage.lose("again")
    assert stage.kept_nodes() == {}
    assert not stage.scheduler.state.pasts


def test_a_node_that_is_not_there_is_resumed() -> None:
    stage = SharedStage(durable=True)
    stage.node("a", place="here")
    stage.operate(DRAIN, "a")
    stage.lose("a")
    assert "not registered at present" in stage.operate(DRAIN, "a").error
    assert stage.operate(RESUME, "a").error == ""
    assert stage.kept_nodes() == {} and not stage.status().nodes
    assert "there is no node 'a'" in stage.operate(RESUME, "a").error


def test_nodes_are_remembered_over_a_restart() -> None:
    scheduler = Scheduler(settings=Settings(durable=True, shared=True))
    kept = {
        7: NodeMeta("a", "a", "10.0.0.1:9701", drained="noisy", place="here", cpus=4),
        9: NodeMeta("b", "b", "10.0.0.2:9701", set_aside="it fails", place="there"),
        8: NodeMeta("c", "c", "", place="c"),
    }
    recall(scheduler.state, kept, 100.0)
    scheduler.check()
    assert scheduler.state.node_ids == 9
    scheduler.joined("a", identity("node", "a", 8, "here"), [], "", 101.0)
    scheduler.receive("a", Holding([], []), 101.0)
    scheduler.joined("b2", identity("node", "b2", 2, "there"), [], "", 101.0)
    scheduler.check()
    nodes = scheduler.nodes
    assert (nodes["a"].id, nodes["a"].identity.cpus, nodes["a"].barred) == (7, 8, "drained: noisy")
    assert (nodes["b2"].id, nodes["b2"].barred) == (10, "set aside: it fails")
    scheduler.tick(100.0 + scheduler.state.settings.adopt_s)  # the third never comes
    scheduler.check()
    assert set(nodes) == {"a", "b2"} and len(scheduler.state.pasts) == 2


def test_asking_for_a_drained_node_helps_once_it_is_resumed() -> None:
    stage = SharedStage(nodes=(NodeSpec("other"),))
    number = stage.node("a", ready=False)
    stage.operate(DRAIN, "a", reason="noisy")
    assert stage.ask(ALLOCATE, number).text == (
        "node a (127.0.0.1:9701) gets no jobs at present: drained: noisy"
    )
    answer = stage.ask(ALLOCATE, nodes=[NodeSpec("a")])
    assert answer.text == "0 of the nodes known by now match"
    assert [trouble.reason for _, trouble in stage.take(NodeTrouble)] == ["drained: noisy"]
    stage.submit(1)
    assert not stage.take(Prepare)
    stage.operate(RESUME, "a")
    stage.prepare()
    assert stage.runs() == {"a": [1]}


def test_a_lost_node_loses_its_jobs_as_always() -> None:
    stage = SharedStage()
    stage.node("a")
    stage.submit(1)
    stage.operate(DRAIN, "a")
    stage.lose("a")
    assert stage.results() == {1: ABANDONED}


# -- by its own word ------------------------------------------------------------------------


def test_a_node_out_of_service() -> None:
    stage = SharedStage()
    stage.node("a")
    stage.submit(1, 2)
    stage.take(Run)
    stage.tell("a", Service(False, "out of service until 18:00"))
    assert stage.state_of("a") == ("out of service", "out of service until 18:00")
    assert stage.take(NodeTrouble)[-1][1].reason == "out of service until 18:00"
    stage.done("a", 1)
    assert stage.runs() == {}
    assert "takes no jobs by itself" in stage.operate(RESUME, "a").error
    stage.tell("a", Service(True))
    assert stage.runs() == {"a": [2]}
    assert stage.state_of("a") == ("up", "")


def test_two_reasons_have_to_go_both() -> None:
    stage = SharedStage()
    stage.node("a")
    stage.operate(DRAIN, "a")
    stage.tell("a", Service(False))
    stage.submit(1)
    stage.tell("a", Service(True))
    assert stage.runs() == {} and stage.state_of("a")[0] == "drained"
    stage.tell("a", Service(False, "night"))
    assert "takes no jobs yet" in stage.operate(RESUME, "a").text
    assert stage.runs() == {} and stage.state_of("a") == ("out of service", "night")
    stage.tell("a", Service(True))
    assert stage.runs() == {"a": [1]}


def test_a_node_that_is_open_says_so_after_each_session() -> None:
    stage = SharedStage()
    stage.node("a")
    stage.take(NodeReady)
    stage.tell("a", Service(True))
    assert not stage.take(Prepare) and not stage.take(NodeReady) and not stage.take(NodeTrouble)


# -- in any order ---------------------------------------------------------------------------

ACTS = st.lists(
    st.tuples(
        st.sampled_from(["drain", "resume", "close", "open", "lose", "join", "submit", "done"]),
        st.sampled_from(["a", "b", "c"]),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(ACTS)
def test_no_job_goes_to_a_node_that_gets_none(acts: list[tuple[str, str]]) -> None:
    stage = SharedStage(durable=True)
    last = 0
    for act, name in acts:
        nodes = stage.scheduler.nodes
        if act == "join" and name not in nodes:
            stage.join(name, 2, place=f"place of {name}")
            stage.tell(name, Holding([], []))
        elif act == "submit":
            stage.submit(*range(last + 1, last + 4))
            last += 3
        elif name in nodes:
            _do(stage, act, name)
        stage.prepare()
        kept = {node.id for node in nodes.values()}
        assert kept <= stage.kept_nodes().keys()
    _all_end(stage)


def _do(stage: SharedStage, act: str, name: str) -> None:
    if act == "drain":
        stage.operate(DRAIN, name, reason="why not")
    elif act == "resume":
        stage.operate(RESUME, name)
    elif act in ("close", "open"):
        stage.tell(name, Service(act == "open"))
    elif act == "lose":
        stage.lose(name)
    else:
        _finish(stage, name)


def _finish(stage: SharedStage, name: str) -> None:
    """Have the oldest job of a node finish."""
    [cluster] = stage.scheduler.clusters.values()
    jobs = [job for job in cluster.jobs.values() if job.allocation is not None]
    for job in [job for job in jobs if job.allocation and job.allocation.node.peer == name][:1]:
        result = JobResult(job.spec.seq, job.spec.attempt, FINISHED, 1.0, 2.0, b"")
        stage.tell(name, Done(cluster.id, [result]))


def _all_end(stage: SharedStage) -> None:
    """Resume all nodes: then every job comes to its end."""
    if not stage.scheduler.nodes:
        stage.join("a", 2, place="place of a")
        stage.tell("a", Holding([], []))
    [cluster] = stage.scheduler.clusters.values()
    for name in list(stage.scheduler.nodes):
        stage.tell(name, Service(True))
        stage.operate(RESUME, name)
    stage.prepare()
    for _ in range(200):
        for name in stage.scheduler.nodes:
            _finish(stage, name)
    assert not cluster.jobs
