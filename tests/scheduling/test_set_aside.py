"""Nodes that fail again and again are used no more, for a while or until somebody says so."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from dispy.broker.durable import Kept, NodeMeta
from dispy.broker.effects import DropNode, KeepNode
from dispy.broker.mishaps import ASIDE_S, MISHAPS_ENOUGH, MISHAPS_S, UNFIT_ENOUGH
from dispy.broker.settings import Settings
from dispy.broker.setups import BREAKDOWNS_MAX
from dispy.protocol.messages import (
    RESUME,
    Holding,
    NodeTrouble,
    Prepare,
    Prepared,
    Returned,
    Run,
    Started,
)

from .operators import SharedStage

BROKEN = "no disk space"


def clusters_fail_at(stage: SharedStage, name: str, first: int, count: int) -> None:
    """Open clusters that one node can't set up and all others can."""
    for number in range(first, first + count):
        stage.open(number)
        stage.prepare(**{name: BROKEN})


def two_nodes() -> SharedStage:
    stage = SharedStage()
    stage.node("bad", place="here")
    stage.node("good", place="there")
    return stage


def lose_with_a_job(stage: SharedStage, seq: int) -> None:
    """Have a node come, get a job, and crash."""
    stage.join("bad", place="here")
    stage.tell("bad", Holding([], []))
    stage.prepare()
    stage.submit(seq)
    assert "bad" in stage.runs()
    stage.lose("bad")


# -- setting up -----------------------------------------------------------------------------


def test_a_node_that_has_served_enough_has_not_failed() -> None:
    stage = two_nodes()
    stage.prepare()
    for number in range(2, 3 + UNFIT_ENOUGH):
        stage.open(number)
        for peer, prepare in stage.take(Prepare):
            error = "it has had enough" if peer == "bad" else ""
            stage.tell(peer, Prepared(prepare.computation, error, declined=bool(error)))
    assert stage.state_of("bad") == ("up", "")


def test_a_node_that_can_not_set_up_what_others_can() -> None:
    stage = two_nodes()
    clusters_fail_at(stage, "bad", 2, UNFIT_ENOUGH - 1)
    assert stage.state_of("bad") == ("up", "")
    stage.take(NodeTrouble)
    clusters_fail_at(stage, "bad", 10, 1)
    reason = "it could not set up 3 clusters in a row that other nodes could"
    assert stage.state_of("bad") == ("set aside", reason)
    troubles = {trouble.cluster: trouble.reason for _, trouble in stage.take(NodeTrouble)}
    assert troubles == {1: f"set aside: {reason}", 10: BROKEN}
    stage.open(11)
    assert [peer for peer, _ in stage.take(Prepare)] == ["good"]
    assert stage.state_of("good") == ("up", "")


def test_it_does_not_matter_who_answers_first() -> None:
    stage = two_nodes()
    for number in range(2, 2 + UNFIT_ENOUGH):
        stage.open(number)
        for peer, prepare in reversed(stage.take(Prepare)):
            stage.tell(peer, Prepared(prepare.computation, BROKEN if peer == "bad" else ""))
    assert stage.state_of("bad")[0] == "set aside"


def test_clusters_that_nobody_can_set_up_do_not_count() -> None:
    stage = two_nodes()
    for number in range(2, 10):
        stage.open(number)
        stage.prepare(bad=BROKEN, good=BROKEN)
    assert stage.state_of("bad") == stage.state_of("good") == ("up", "")


def test_a_success_in_between_begins_anew() -> None:
    stage = two_nodes()
    clusters_fail_at(stage, "bad", 2, UNFIT_ENOUGH - 1)
    stage.open(8)
    stage.prepare()
    clusters_fail_at(stage, "bad", 10, UNFIT_ENOUGH - 1)
    assert stage.state_of("bad") == ("up", "")


def test_resume_sets_it_up_again() -> None:
    stage = two_nodes()
    clusters_fail_at(stage, "bad", 2, UNFIT_ENOUGH)
    stage.submit(1, 2)
    assert stage.runs() == {"good": [1]}
    assert stage.operate(RESUME, "bad").text.startswith("node bad (127.0.0.1:9703) was set aside")
    assert stage.runs() == {"bad": [2]}
    assert [peer for peer, _ in stage.take(Prepare)] == ["bad"] * UNFIT_ENOUGH
    assert stage.state_of("bad") == ("up", "")


def test_a_private_broker_sets_nobody_aside() -> None:
    stage = two_nodes()
    stage.scheduler.state.settings = Settings()
    clusters_fail_at(stage, "bad", 2, 10)
    assert stage.state_of("bad") == ("up", "")


# -- losing jobs ----------------------------------------------------------------------------


def test_a_node_that_crashes_with_jobs() -> None:
    stage = SharedStage(durable=True)
    for seq in range(1, 1 + MISHAPS_ENOUGH):
        lose_with_a_job(stage, seq)
    [reason] = stage.kept_nodes().values()
    assert reason == "within an hour it was lost with jobs 5 times, and 0 clusters broke down there"
    stage.join("again", place="here")
    stage.tell("again", Holding([], []))
    assert not stage.take(Prepare)
    assert stage.state_of("again") == ("set aside", reason)
    assert stage.take(NodeTrouble)[-1][1].reason == f"set aside: {reason}"


def test_crashes_of_long_ago_do_not_count() -> None:
    stage = SharedStage()
    for seq in range(1, 3 * MISHAPS_ENOUGH):
        stage.tick(stage.now + MISHAPS_S / (MISHAPS_ENOUGH - 1) + 1)
        lose_with_a_job(stage, seq)
    assert not stage.scheduler.state.aside


def test_a_node_that_is_stopped_or_idle_has_not_crashed() -> None:
    stage = SharedStage()
    for seq in range(2 * MISHAPS_ENOUGH):
        stage.node("bad", place="here")
        if seq % 2:
            stage.submit(seq)
            stage.take(Run)
            stage.tell("bad", Started(stage.number, [(seq, 1, 1.0)]))
            stage.tell("bad", Returned(stage.number, [], asked=False))
        stage.lose("bad")
    assert not stage.scheduler.state.pasts


def test_breakdowns_count_once_for_each_cluster() -> None:
    stage = SharedStage()
    numbers = [stage.number, *(stage.open(number) for number in range(2, 2 + MISHAPS_ENOUGH))]
    stage.node("bad", ready=False)
    stage.prepare()
    for _ in range(BREAKDOWNS_MAX):
        stage.tell("bad", Prepared(numbers[0], BROKEN))
        stage.prepare()
    assert stage.state_of("bad") == ("up", "")
    for number in numbers[1:]:
        assert stage.state_of("bad") == ("up", "")
        stage.tell("bad", Prepared(number, BROKEN))
        stage.prepare()
        if number == numbers[MISHAPS_ENOUGH - 1]:
            break
    assert stage.state_of("bad")[0] == "set aside"
    assert "5 clusters broke down there" in stage.state_of("bad")[1]


# -- and back -------------------------------------------------------------------------------


def test_it_comes_back_by_itself_once() -> None:
    stage = two_nodes()
    clusters_fail_at(stage, "bad", 2, UNFIT_ENOUGH)
    assert stage.scheduler.deadline() == ASIDE_S
    stage.tick(ASIDE_S - 1)
    assert stage.state_of("bad")[0] == "set aside"
    stage.tick(ASIDE_S)
    assert stage.state_of("bad") == ("up", "")
    stage.prepare(bad=BROKEN)  # those that failed are tried again
    assert stage.state_of("bad")[0] == "set aside"
    stage.tick(10 * ASIDE_S)
    assert stage.state_of("bad")[0] == "set aside"
    stage.operate(RESUME, "bad")
    stage.prepare()
    assert stage.state_of("bad") == ("up", "")


def test_it_takes_less_the_second_time() -> None:
    stage = SharedStage()
    for seq in range(1, 1 + MISHAPS_ENOUGH):
        lose_with_a_job(stage, seq)
    stage.tick(ASIDE_S)  # nothing is there that could be used again
    assert not stage.scheduler.state.aside
    past = next(iter(stage.scheduler.state.pasts.values()))
    assert past.returned and past.mishaps == [(ASIDE_S, 0)] * (MISHAPS_ENOUGH // 2)
    for seq in range(10, 13):
        lose_with_a_job(stage, seq)
    assert past.set_aside and past.until == float("inf")


def restarted(stage: SharedStage) -> SharedStage:
    """Return a stage with the broker started again, two hundred seconds later by its clock."""
    kept: dict[int, NodeMeta] = {}
    for effect in stage.all_effects:
        if isinstance(effect, KeepNode):
            kept[effect.id] = effect.meta
        elif isinstance(effect, DropNode):
            del kept[effect.id]
    again = SharedStage(durable=True)
    again.scheduler.state.wall_offset_s = stage.scheduler.state.wall_offset_s + stage.now + 200.0
    again.scheduler.restore(Kept(nodes=kept), again.now)
    again.flush()
    return again


def test_crashes_count_also_when_the_broker_was_started_anew() -> None:
    stage = SharedStage(durable=True)
    for seq in range(1, MISHAPS_ENOUGH):
        lose_with_a_job(stage, seq)
    assert set(stage.kept_nodes().values()) == {""}
    stage = restarted(stage)
    [past] = stage.scheduler.state.pasts.values()
    assert past.mishaps == [(-200.0, 0)] * (MISHAPS_ENOUGH - 1)
    lose_with_a_job(stage, 1)
    assert past.set_aside
    assert restarted(stage).scheduler.state.aside


def test_what_it_could_not_set_up_counts_also_then() -> None:
    stage = SharedStage(durable=True)
    stage.node("bad", place="here")
    stage.node("good", place="there")
    clusters_fail_at(stage, "bad", 2, UNFIT_ENOUGH - 1)
    pasts = restarted(stage).scheduler.state.pasts
    assert (list(pasts["here"].unfit.values()), pasts["there"].unfit) == ([True, True], {})
    stage.open(8)
    stage.prepare()
    assert restarted(stage).scheduler.state.pasts["here"].unfit == {}


# -- in any order ---------------------------------------------------------------------------

ACTS = st.lists(
    st.tuples(
        st.sampled_from(["open", "fail", "break", "crash", "join", "wait", "resume", "drain"]),
        st.sampled_from(["a", "b", "c"]),
    ),
    max_size=60,
)


@settings(max_examples=150, deadline=None)
@given(ACTS)
def test_no_job_goes_to_a_node_that_is_set_aside(acts: list[tuple[str, str]]) -> None:
    stage = SharedStage(durable=True)
    failing: set[str] = set()  # nodes that can't set anything up now
    last = 1
    for act, name in acts:
        nodes = stage.scheduler.nodes
        if act == "open":
            last += 1
            stage.open(last)
            stage.submit_to(last, 1, 2, 3)
        elif act == "fail":
            failing ^= {name}
        elif act == "wait":
            stage.tick(stage.now + ASIDE_S / 4)
        elif act == "join" and name not in nodes:
            stage.join(name, place=f"place of {name}")
            stage.tell(name, Holding([], []))
        elif name in nodes:
            _do(stage, act, name)
        stage.prepare(**dict.fromkeys(failing, BROKEN))
        assert {node.id for node in nodes.values()} <= stage.kept_nodes().keys()
    for name in stage.scheduler.nodes:
        stage.operate(RESUME, name)
        assert stage.state_of(name) == ("up", "")


def _do(stage: SharedStage, act: str, name: str) -> None:
    if act == "crash":
        stage.lose(name)
    elif act == "break":
        for number in list(stage.scheduler.nodes[name].allocations):
            stage.tell(name, Prepared(number, BROKEN))
    else:
        stage.operate(act, name)
