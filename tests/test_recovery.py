"""What a recovery decides: whom it asks, when a job has ended and how, when nodes are free."""

from __future__ import annotations

from typing import TypeGuard

import pytest

from dispy.node.core import LEASE_S, Agent
from dispy.node.effects import Give
from dispy.node.effects import Send as ToBroker
from dispy.protocol.errors import ProtocolError
from dispy.protocol.fetching import STORE_BYTES
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FILE,
    FINISHED,
    PROVISIONAL,
    TERMINATED,
    BlobPieces,
    BlobRange,
    Body,
    Code,
    ComputationSpec,
    Done,
    Heard,
    Holding,
    Identity,
    Inventory,
    JobRecord,
    JobResult,
    JobSpec,
    Kill,
    NeedBlobs,
    Prepare,
    Prepared,
    Records,
    RecordsHeard,
    Release,
    Released,
    Returned,
    Run,
    Started,
    Submit,
)
from dispy.protocol.payload import unpack_result
from dispy.recovery import PATIENCE_S, Cluster, Effect, Goodbye, Job, Received, Recovery, Send

COMPUTATION = 7
SIBLING = 8
DOORS = {"a": "10.0.0.1:9701", "b": "10.0.0.2:9701"}


def result(seq: int, status: int = FINISHED, attempt: int = 1) -> JobResult:
    return JobResult(seq, attempt, status, 1.0, 2.0, b"result")


class Play:
    """A recovery of jobs 1, 2, 3 with nodes a and b, checked after every event."""

    def __init__(self, doors: str = "ab", siblings: tuple[int, ...] = ()) -> None:
        self.jobs = {seq: Job(seq) for seq in (1, 2, 3)}
        cluster = Cluster(
            COMPUTATION, self.jobs, {4, 5}, {DOORS[name] for name in doors}, self.has_ended
        )
        self.recovery = Recovery([cluster], set(siblings), 0.0)

    def has_ended(self, seq: int) -> bool:
        return seq < 0

    def join(self, name: str, *jobs: int, computations: tuple[int, ...] = (COMPUTATION,)) -> None:
        identity = Identity("node", name, f"node {name}", "", "", "", address=DOORS[name])
        self.recovery.joined(name, identity, DOORS[name])
        self.say(name, Holding([*computations], [(computations[0], seq, 1) for seq in jobs]))

    def say(self, name: str, message: Body) -> None:
        self.recovery.receive(name, message)
        self.recovery.check()

    def effects(self) -> list[Effect]:
        self.recovery.check()
        return self.recovery.flush()

    def status(self, seq: int) -> int:
        found = self.jobs[seq].result
        return 0 if found is None else found.status

    def reason(self, seq: int) -> str:
        found = self.jobs[seq].result
        assert found is not None
        return unpack_result(found.payload).exception


def test_all_is_settled_when_all_have_ended() -> None:
    play = Play()
    play.join("a", 1, 2)
    play.join("b", 3)
    assert play.effects() == [
        Send("a", Inventory([(COMPUTATION, 1, 1), (COMPUTATION, 2, 1)])),
        Send("b", Inventory([(COMPUTATION, 3, 1)])),
    ]
    play.say("a", Done(COMPUTATION, [result(1), result(2, TERMINATED)]))
    assert not play.recovery.settled
    play.say("b", Done(COMPUTATION, [result(3)]))
    assert play.recovery.settled
    assert [play.status(seq) for seq in (1, 2, 3)] == [FINISHED, TERMINATED, FINISHED]
    assert play.jobs[3].host == "10.0.0.2"
    assert [type(effect) for effect in play.effects()] == [Received] * 3


def test_nodes_are_released_and_let_go() -> None:
    play = Play("a")
    play.join("a")
    play.effects()
    play.recovery.release()
    assert play.effects() == [Send("a", Release(COMPUTATION))]
    assert not play.recovery.released
    play.say("a", Released(COMPUTATION))
    assert play.recovery.released
    play.recovery.farewell()
    assert [type(effect) for effect in play.effects()] == [Goodbye]


def test_what_no_node_has_was_never_sent() -> None:
    play = Play()
    play.join("a", 1)
    assert play.status(2) == 0
    play.join("b", 2)
    assert [play.status(seq) for seq in (1, 2, 3)] == [0, 0, CANCELLED]
    assert "not been sent" in play.reason(3)


def test_jobs_that_waited_in_the_program_are_cancelled() -> None:
    play = Play()
    play.join("a", 1, 2)
    assert play.recovery.ends(COMPUTATION) == [], "node b may have them"
    play.recovery.tick(PATIENCE_S)
    ends = {job.seq: job.result for job in play.recovery.ends(COMPUTATION)}
    assert {seq: end.status for seq, end in ends.items() if end} == {
        3: ABANDONED,  # it had been sent
        4: CANCELLED,
        5: CANCELLED,
    }


def test_a_job_that_a_node_has_did_not_wait() -> None:
    play = Play()
    play.join("a", 4)
    play.join("b")
    assert not play.recovery.settled
    play.say("a", Done(COMPUTATION, [result(4)]))
    assert play.recovery.settled
    ends = {job.seq: job.result for job in play.recovery.ends(COMPUTATION)}
    assert [end.status for end in ends.values() if end] == [CANCELLED] * 3 + [FINISHED, CANCELLED]


def test_results_that_were_kept_come_before_the_inventory() -> None:
    play = Play("a")
    identity = Identity("node", "a", "node a", "", "", "", address=DOORS["a"])
    play.recovery.joined("a", identity, "")
    play.say("a", Done(COMPUTATION, [result(1)]))
    play.say("a", Holding([COMPUTATION], [(COMPUTATION, 2, 1)]))
    assert [play.status(seq) for seq in (1, 2, 3)] == [FINISHED, 0, CANCELLED]


def test_a_node_that_cannot_be_reached_is_given_up() -> None:
    play = Play()
    play.join("a", 1)
    play.recovery.unreachable_at(DOORS["b"], "connection refused")
    play.recovery.tick(PATIENCE_S - 0.1)
    assert play.status(2) == 0
    assert play.recovery.deadline() == PATIENCE_S
    play.recovery.tick(PATIENCE_S)
    assert [play.status(seq) for seq in (1, 2, 3)] == [0, ABANDONED, ABANDONED]
    assert play.reason(2).endswith("(10.0.0.2:9701: connection refused)")
    assert play.recovery.unreachable == {DOORS["b"]: "connection refused"}


def test_where_a_job_began_is_known() -> None:
    play = Play()
    play.jobs[2].begun_at = DOORS["b"]
    play.jobs[3].begun_at = DOORS["a"]
    play.join("a", 1)
    play.recovery.tick(PATIENCE_S)
    assert play.reason(2) == f"its node is lost ({DOORS['b']}: no answer)"
    assert "started anew" in play.reason(3)


def test_a_node_that_goes_away_has_time_to_come_back() -> None:
    play = Play("a")
    play.join("a", 1, 2, 3)
    play.recovery.away("a", "the connection was closed", False, 10.0)
    play.recovery.tick(10.0 + PATIENCE_S - 0.1)
    assert play.status(1) == 0
    play.recovery.back("a")
    play.recovery.tick(20.0)
    assert play.status(1) == 0
    play.recovery.away("a", "the connection was closed", False, 30.0)
    play.recovery.tick(30.0 + PATIENCE_S)
    assert play.status(1) == ABANDONED
    play.recovery.back("a")
    play.recovery.check()
    assert play.status(1) == 0, "it has it all the same"
    play.say("a", Done(COMPUTATION, [result(seq) for seq in (1, 2, 3)]))
    assert play.recovery.settled
    assert play.recovery.unreachable == {}


def test_a_node_that_ends_takes_its_jobs_with_it() -> None:
    play = Play()
    play.join("a", 1)
    play.join("b", 2, 3)
    play.recovery.left("b", "it was stopped")
    assert [play.status(seq) for seq in (1, 2, 3)] == [0, ABANDONED, ABANDONED]
    assert play.reason(2) == "node node b 10.0.0.2:9701 was lost: it was stopped"


def test_a_node_that_works_for_another_has_kept_results() -> None:
    play = Play("a")
    identity = Identity("node", "a", "node a", "", "", "", address=DOORS["a"])
    play.recovery.joined("a", identity, DOORS["a"])
    play.say("a", Done(COMPUTATION, [result(1)]))
    assert not play.recovery.settled
    play.say("a", Released(COMPUTATION))
    assert play.recovery.settled
    assert [play.status(seq) for seq in (1, 2, 3)] == [FINISHED, ABANDONED, ABANDONED]
    assert "to work for another" in play.reason(2)
    play.say("a", Done(COMPUTATION, [result(2)]))
    assert play.status(2) == FINISHED, "what is told is better than what was concluded"
    play.recovery.left("a", "this node works for others at present")
    play.recovery.check()
    assert play.recovery.unreachable == {}


def test_the_latest_attempt_counts() -> None:
    play = Play()
    play.join("a", 1)
    play.join("b")
    play.say("b", Holding([COMPUTATION], [(COMPUTATION, 1, 2)]))
    play.say("a", Done(COMPUTATION, [result(1)]))
    assert play.status(1) == 0
    play.say("b", Done(COMPUTATION, [result(1, TERMINATED, 2)]))
    assert play.status(1) == TERMINATED
    play.say("a", Done(COMPUTATION, [result(1)]))
    assert play.status(1) == TERMINATED


def test_what_had_not_begun_is_cancelled() -> None:
    play = Play("a")
    play.join("a", 1, 2, 3)
    play.say("a", Returned(COMPUTATION, [(1, 1)], asked=False))
    play.say("a", Done(COMPUTATION, [result(2, TERMINATED)]))
    play.say("a", Prepared(COMPUTATION, "its template died"))
    assert [play.status(seq) for seq in (1, 2, 3)] == [CANCELLED, TERMINATED, CANCELLED]
    assert play.reason(3) == "it had not begun: its template died"


def test_jobs_that_the_file_lost_are_found() -> None:
    play = Play("a")
    play.join("a", 4)
    play.say("a", Done(COMPUTATION, [result(4), result(-1)]))
    assert play.status(4) == FINISHED
    assert -1 not in play.jobs, "its end was known"
    play.say("a", Done(99, [result(1)]))
    assert play.recovery.clusters[99].jobs[1].result is not None


def test_siblings_are_left_alone() -> None:
    play = Play("a", siblings=(SIBLING,))
    play.join("a", 1, computations=(SIBLING, COMPUTATION))
    play.say("a", Done(SIBLING, [result(2)]))
    assert [play.status(seq) for seq in (1, 2, 3)] == [CANCELLED] * 3
    assert play.effects() == [
        Send("a", Inventory([(SIBLING, 1, 1)])),
        Received(SIBLING, "10.0.0.1", result(2)),
    ]
    play.recovery.release()
    assert play.effects() == [Send("a", Release(COMPUTATION))]
    play.say("a", Released(COMPUTATION))
    assert play.recovery.released
    play.recovery.farewell()
    assert play.effects() == []


def test_what_runs_can_be_killed() -> None:
    play = Play()
    play.join("a", 1)
    play.effects()
    play.recovery.kill()
    assert play.effects() == [Send("a", Kill(COMPUTATION, [(1, 1)]))]
    play.join("b", 2)
    assert play.effects()[1:] == [Send("b", Kill(COMPUTATION, [(2, 1)]))]
    play.say("a", Done(COMPUTATION, [result(1, TERMINATED)]))
    play.recovery.cut_short()
    assert play.recovery.settled
    assert "released" in play.reason(2)


def test_nodes_that_are_not_there_can_be_given_up_at_once() -> None:
    play = Play()
    play.join("a", 1)
    play.recovery.give_up_unreachable()
    assert [play.status(seq) for seq in (1, 2, 3)] == [0, ABANDONED, ABANDONED]


def test_jobs_that_say_something_are_heard() -> None:
    play = Play("a")
    play.join("a", 1)
    play.effects()
    kinds = (PROVISIONAL, FILE)
    records = [JobRecord(1, 1, number, kind, b"x") for number, kind in enumerate(kinds, 1)]
    play.say("a", Records(COMPUTATION, records))
    ((_, answer),) = play.effects()  # type: ignore[misc]
    assert isinstance(answer, RecordsHeard)
    assert answer.jobs[0] == Heard(1, 1, 1)
    assert "nobody takes the file" in answer.jobs[1].error


def test_files_of_jobs_are_not_to_be_had() -> None:
    play = Play("a")
    play.join("a", 1)
    play.effects()
    play.say("a", NeedBlobs(COMPUTATION, 0, [BlobRange(b"digest", 10, 20)]))
    ((_, answer),) = play.effects()  # type: ignore[misc]
    assert isinstance(answer, BlobPieces)
    assert (answer.pieces[0].digest, answer.pieces[0].offset) == (b"digest", 10)
    assert answer.pieces[0].error


def test_a_kept_result_counts() -> None:
    play = Play("a")
    play.recovery.take_kept(COMPUTATION, "10.0.0.1", result(1))
    play.join("a")
    play.say("a", Started(COMPUTATION, [(2, 1, 5.0)]))
    assert [play.status(seq) for seq in (1, 2, 3)] == [FINISHED, CANCELLED, CANCELLED]


def test_others_are_not_understood() -> None:
    play = Play("a")
    play.join("a")
    with pytest.raises(ProtocolError):
        play.say("a", Submit(1, []))


# -- with a real node's agent ------------------------------------------------------------------


class Meeting:
    """An agent with two jobs of a program that has died, and the recovery that comes for them."""

    def __init__(self) -> None:
        self.agent = Agent(2, 0.0, STORE_BYTES, 0)
        self.now = 100.0
        self.agent.joined("dead", self.broker("dead"), [], self.now)
        code = Code("3.11", JobSpec(0, 0, b"f"))
        self.agent.receive("dead", Prepare(COMPUTATION, ComputationSpec("c", [code])), self.now)
        self.agent.template_ready(COMPUTATION)
        jobs = [JobSpec(1, 1, b"x"), JobSpec(2, 1, b"x")]
        self.agent.receive("dead", Run(COMPUTATION, jobs), self.now)
        given = [effect for effect in self.agent.flush(self.now) if isinstance(effect, Give)]
        self.workers = {effect.jobs[0].seq: effect.worker for effect in given}
        self.agent.away("dead", self.now)
        self.jobs = {seq: Job(seq) for seq in (1, 2)}
        cluster = Cluster(COMPUTATION, self.jobs, set(), {DOORS["a"]}, lambda seq: False)
        self.recovery = Recovery([cluster], set(), self.now)
        self.undelivered: list[Body] = []

    @staticmethod
    def broker(instance: str) -> Identity:
        return Identity("broker", instance, f"broker {instance}", "", "", "")

    def end(self, seq: int) -> None:
        self.agent.outcomes(self.workers[seq], [result(seq)], self.now)
        self.undelivered = [each.message for each in self.agent.flush(self.now) if _is_sent(each)]

    def meet(self, *undelivered: Body) -> None:
        """The recovery dials the node."""
        assert self.agent.admit(self.broker("dead"), self.now) == ""
        node = Identity("node", "n", "node", "", "", "", address=DOORS["a"])
        self.recovery.joined("n", node, DOORS["a"])
        self.agent.joined("dead", self.broker("dead"), [*undelivered], self.now)
        self.talk()

    def talk(self) -> None:
        """Carry messages until there are no more."""
        more = True
        while more:
            said = [each.message for each in self.agent.flush(self.now) if _is_sent(each)]
            for message in said:
                self.recovery.receive("n", message)
            self.recovery.check()
            answers = [each for each in self.recovery.flush() if isinstance(each, Send)]
            for answer in answers:
                self.agent.receive("dead", answer.message, self.now)
            self.agent.check()
            more = bool(said or answers)

    def statuses(self) -> list[int]:
        return [job.result.status if job.result is not None else 0 for job in self.jobs.values()]


def _is_sent(effect: object) -> TypeGuard[ToBroker]:
    return isinstance(effect, ToBroker) and effect.peer == "dead"


def test_a_node_gives_a_recovery_all_it_has() -> None:
    meeting = Meeting()
    meeting.end(1)
    meeting.meet(*meeting.undelivered)
    assert meeting.statuses() == [FINISHED, 0]
    meeting.end(2)
    for message in meeting.undelivered:
        meeting.recovery.receive("n", message)
    assert meeting.recovery.settled
    meeting.recovery.release()
    meeting.talk()
    assert not meeting.recovery.released
    meeting.agent.template_gone(COMPUTATION)
    meeting.talk()
    assert meeting.recovery.released


def test_a_node_that_is_in_use_gives_what_it_has_kept() -> None:
    meeting = Meeting()
    meeting.end(1)
    meeting.now += LEASE_S + 1
    meeting.agent.joined("next", meeting.broker("next"), [], meeting.now)
    meeting.agent.kept_for("dead", meeting.undelivered, meeting.now)
    meeting.agent.flush(meeting.now)
    meeting.agent.template_gone(COMPUTATION)
    other = Prepare(COMPUTATION + 1, ComputationSpec("d", [Code("3.11", JobSpec(0, 0, b"f"))]))
    meeting.agent.receive("next", other, meeting.now)
    meeting.agent.flush(meeting.now)
    meeting.meet()
    assert meeting.recovery.settled
    assert meeting.statuses() == [FINISHED, ABANDONED]
    meeting.recovery.release()
    meeting.talk()
    assert meeting.recovery.released
    assert COMPUTATION + 1 in meeting.agent.computations
