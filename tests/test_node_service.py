"""When the agent takes no jobs: out of its hours, or when it has served enough clusters."""

from __future__ import annotations

from typing import TypeVar

from dispy.node.core import Agent
from dispy.node.effects import (
    Effect,
    Give,
    Goodbye,
    Interrupt,
    Leave,
    Revoke,
    Send,
    TellTime,
    Terminate,
)
from dispy.node.service import Hours, hours_of, seconds_of
from dispy.protocol import payload
from dispy.protocol.messages import (
    FINISHED,
    TERMINATED,
    Body,
    Code,
    ComputationSpec,
    Done,
    Envelope,
    Holding,
    Identity,
    JobOptions,
    JobResult,
    JobSpec,
    Prepare,
    Prepared,
    Release,
    Returned,
    Run,
    Service,
    Withdraw,
)
from dispy.protocol.wire import Codec

BROKER = Identity("broker", "b", "broker", "0", "3", "Linux")
DAY = hours_of("9:00", "17:00", "18:00")
GRACE_S = 1.0
Kind = TypeVar("Kind")


def as_sent(message: Body) -> Body:
    """Return what arrives when this is sent."""
    codec = Codec()
    header, _ = codec.encode(Envelope(1, 1, 0, [message]))
    frame, _ = codec.decode(header)
    assert isinstance(frame, Envelope)
    return frame.messages[0]


class Stage:
    """An agent of two CPUs, a broker, and a clock on the wall that can be set."""

    def __init__(
        self, hours: Hours | None = DAY, time: str = "12:00", serves: int = -1, max_tasks: int = 1
    ) -> None:
        self.agent = Agent(2, hours=hours, serves=serves)
        self.now = 100.0
        self.time_s = seconds_of(time)
        self.effects: list[Effect] = []
        self.max_tasks = max_tasks
        self.wait(0.0)
        self.join()
        self.prepare(1)

    def join(self) -> None:
        self.agent.joined("b", BROKER, [], self.now)
        self.flush()

    def prepare(self, number: int) -> None:
        code = Code("3.11", JobSpec(0, 0, b"f"))
        spec = ComputationSpec("c", [code], cancel_grace=GRACE_S, pulse_interval=0.0)
        spec.max_tasks_per_child = self.max_tasks
        self.tell(Prepare(number, spec))
        self.agent.template_ready(number)
        self.flush()

    def tell(self, message: Body) -> None:
        self.agent.receive("b", as_sent(message), self.now)
        self.flush()

    def flush(self) -> None:
        self.agent.check()
        while effects := self.agent.flush(self.now):
            self.agent.check()
            self.effects += effects
            for effect in effects:
                if isinstance(effect, TellTime):
                    self.agent.time_told(self.time_s, self.now)

    def wait(self, seconds: float) -> None:
        """Let time pass, with the ticks that the agent asks for; the clock on the wall stands."""
        until = self.now + seconds
        self.agent.tick(self.now)
        self.flush()
        while self.now < until:
            self.now = min(until, max(self.agent.deadline(), self.now + 1e-4))
            self.agent.tick(self.now)
            self.flush()

    def clock(self, time: str) -> None:
        """It is this time; the agent looks at the clock every minute."""
        self.time_s = seconds_of(time)
        self.wait(60.0)

    def run(self, *seqs: int, options: JobOptions | None = None) -> dict[int, list[int]]:
        """Send jobs; return which worker was given which."""
        self.tell(Run(1, [JobSpec(seq, 1, b"x", [], options) for seq in seqs]))
        return self.given()

    def given(self) -> dict[int, list[int]]:
        return {give.worker: [job.seq for job in give.jobs] for give in self.take(Give)}

    def ended(self, worker: int, *seqs: int, status: int = FINISHED, exception: str = "") -> None:
        body = payload.pack_result(b"", b"", b"", exception)
        results = [JobResult(seq, 1, status, 1.0, 1.00001, body) for seq in seqs]
        self.agent.outcomes(worker, results, self.now)
        self.flush()

    def results(self) -> dict[int, tuple[int, str]]:
        return {
            result.seq: (result.status, payload.unpack_result(result.payload).exception)
            for done in self.said(Done)
            for result in done.results
        }

    def returned(self) -> list[int]:
        return [seq for message in self.said(Returned) for seq, _ in message.jobs]

    def take(self, kind: type[Kind]) -> list[Kind]:
        """Take out all effects of a kind."""
        taken: list[Kind] = [effect for effect in self.effects if isinstance(effect, kind)]
        self.effects = [effect for effect in self.effects if not isinstance(effect, kind)]
        return taken

    def said(self, kind: type[Kind]) -> list[Kind]:
        """Take out all messages of a kind."""
        bodies = [effect.message for effect in self.effects if isinstance(effect, Send)]
        taken: list[Kind] = [body for body in bodies if isinstance(body, kind)]
        self.effects = [
            effect
            for effect in self.effects
            if not (isinstance(effect, Send) and isinstance(effect.message, kind))
        ]
        return taken


def test_a_node_without_hours_never_looks_at_the_clock() -> None:
    stage = Stage(hours=None)
    stage.wait(200.0)
    assert not stage.take(TellTime) and not stage.said(Service)
    assert stage.run(1)


def test_in_its_hours_a_node_is_like_any_other() -> None:
    stage = Stage()
    assert not stage.said(Service)
    assert sorted(stage.run(1, 2).values()) == [[1], [2]]


def test_the_clock_is_looked_at_every_minute() -> None:
    stage = Stage()
    stage.take(TellTime)
    stage.wait(300.0)
    assert len(stage.take(TellTime)) == 5


def test_the_clock_is_looked_at_when_something_changes() -> None:
    stage = Stage(time="16:59:59")
    stage.time_s = seconds_of("17:00")
    stage.wait(1.0)
    assert [message.open for message in stage.said(Service)] == [False]


def test_what_has_begun_goes_on_after_the_stop_and_the_rest_goes_back() -> None:
    stage = Stage()
    given = stage.run(1, 2, 3, 4)
    stage.clock("17:00")
    reason = "out of service until 09:00; jobs that run may go on until 18:00"
    assert stage.said(Service) == [Service(False, reason)]
    assert stage.returned() == [3, 4]
    assert not stage.take(Interrupt)
    for worker, seqs in given.items():
        stage.ended(worker, *seqs)
    assert stage.results() == {1: (FINISHED, ""), 2: (FINISHED, "")}
    assert not stage.given()


def test_that_it_goes_back_is_no_farewell() -> None:
    """A broker would take the node for one that is being stopped."""
    stage = Stage()
    stage.run(1, 2, 3)
    stage.clock("17:00")
    assert [message.asked for message in stage.said(Returned)] == [True]


def test_jobs_that_come_when_it_takes_none_go_back_at_once() -> None:
    stage = Stage(time="17:30")
    assert not stage.run(1, 2) and stage.returned() == [1, 2]
    stage.tell(Withdraw(1, 5))
    assert stage.said(Returned) == [Returned(1, [])]


def test_what_was_handed_over_ahead_is_taken_back() -> None:
    stage = Stage(max_tasks=0)
    first = stage.run(1, 2)
    for worker, seqs in first.items():
        stage.ended(worker, *seqs)  # they were very short
    given = stage.run(*range(3, 40))
    full = [worker for worker, seqs in given.items() if len(seqs) > 1]
    stage.take(Revoke)
    stage.clock("17:00")
    assert {revoke.worker for revoke in stage.take(Revoke)} == set(full)
    for worker in full:
        stage.agent.revoked(worker, len(given[worker]) - 1, stage.now)
        stage.flush()
    assert sorted([*stage.returned(), *[seqs[0] for seqs in given.values()]]) == [*range(3, 40)]


def test_what_still_runs_at_the_end_is_ended_with_the_reason() -> None:
    stage = Stage()
    given = stage.run(1, 2, 3)
    stage.clock("18:00")
    assert stage.said(Service) == [Service(False, "out of service until 09:00")]
    assert stage.returned() == [3]
    assert sorted(effect.worker for effect in stage.take(Interrupt)) == sorted(given)
    stage.wait(GRACE_S)
    assert len(stage.take(Terminate)) == 2  # both had their grace, and did nothing
    [worker, other] = given
    stage.ended(worker, *given[worker], status=TERMINATED, exception="the job was cancelled\nhere")
    stage.agent.worker_exited(other, 1, "was killed", (b"", b""), stage.now)
    stage.flush()
    reasons = stage.results()
    why = "the node's service ended at 18:00"
    assert reasons[given[worker][0]] == (TERMINATED, f"{why}\nhere")
    assert reasons[given[other][0]] == (TERMINATED, f"{why}; was killed")


def test_a_job_that_returns_in_its_grace_is_finished() -> None:
    stage = Stage()
    [(worker, _)] = stage.run(1).items()
    stage.clock("18:00")
    stage.ended(worker, 1)
    assert stage.results() == {1: (FINISHED, "")}


def test_a_job_that_ran_too_long_is_not_said_to_have_run_too_late() -> None:
    stage = Stage()
    [(worker, _)] = stage.run(1, options=JobOptions(timeout=0.5)).items()
    stage.wait(0.6)
    stage.clock("18:00")
    stage.ended(worker, 1, status=TERMINATED)
    assert stage.results() == {1: (TERMINATED, "ran longer than its limit of 0.5 s")}


def test_results_that_are_on_the_way_at_the_end_count() -> None:
    """Nothing is taken back over and over while a process has results to tell."""
    stage = Stage(max_tasks=0)
    first = stage.run(1, 2)
    for worker, seqs in first.items():
        stage.ended(worker, *seqs)
    given = stage.run(*range(3, 40))
    worker = next(worker for worker, seqs in given.items() if len(seqs) > 1)
    seqs = given[worker]
    stage.clock("18:00")
    stage.take(Revoke)
    stage.take(Interrupt)
    stage.agent.revoked(worker, len(seqs) - 2, stage.now)  # one has ended, and one runs
    stage.flush()
    assert worker not in [effect.worker for effect in stage.take(Interrupt)]
    stage.ended(worker, seqs[0])
    assert worker in [effect.worker for effect in stage.take(Interrupt)]


def test_at_the_start_the_node_is_back() -> None:
    stage = Stage(time="8:00")
    stage.said(Service)
    stage.clock("9:00")
    assert stage.said(Service) == [Service(True)]
    assert sorted(stage.run(1, 2).values()) == [[1], [2]]


def test_each_new_session_is_told_after_what_is_here() -> None:
    stage = Stage(time="20:00")
    stage.effects.clear()
    stage.agent.away("b", stage.now)
    stage.join()
    said = [effect.message for effect in stage.effects if isinstance(effect, Send)]
    assert isinstance(said[0], Holding)
    assert said[1] == Service(False, "out of service until 09:00")
    stage.clock("10:00")
    stage.effects.clear()
    stage.join()
    assert not stage.said(Service)  # it takes jobs, like any other


def test_a_broker_that_is_there_before_the_clock_was_read_is_told() -> None:
    agent = Agent(2, hours=DAY)
    agent.joined("b", BROKER, [], 1.0)
    agent.tick(1.0)
    assert TellTime() in agent.flush(1.0)
    agent.time_told(0.0, 1.0)
    messages = [each.message for each in agent.flush(1.0) if isinstance(each, Send)]
    assert messages == [Service(False, "out of service until 09:00")]


# -- a number of clusters ------------------------------------------------------------------------


def gone(stage: Stage, number: int) -> None:
    stage.agent.template_gone(number)
    stage.flush()


def test_a_node_serves_so_many_clusters_and_stops_when_the_last_is_gone() -> None:
    stage = Stage(hours=None, serves=2)
    stage.tell(Release(1))
    gone(stage, 1)
    assert not stage.take(Leave)
    stage.prepare(2)
    stage.said(Prepared)
    stage.tell(Prepare(3, ComputationSpec("c", [])))
    [refused] = stage.said(Prepared)
    assert refused.error == "the node was started to serve 2 clusters, and has done so"
    stage.tell(Release(2))
    assert not stage.take(Leave)
    gone(stage, 2)
    assert stage.take(Leave) == [Leave()]


def test_a_cluster_that_is_set_up_anew_counts_once() -> None:
    stage = Stage(hours=None, serves=1)
    stage.tell(Release(1, keep=True))
    gone(stage, 1)
    assert not stage.take(Leave)  # its files wait
    stage.prepare(1)
    stage.tell(Release(1))
    stage.prepare(1)  # at once: before it is gone
    gone(stage, 1)
    assert not stage.take(Leave)
    stage.tell(Release(1))
    gone(stage, 1)
    assert stage.take(Leave) == [Leave()]


def test_the_same_number_of_another_broker_is_another_cluster() -> None:
    stage = Stage(hours=None, serves=2)
    stage.agent.left("b")
    gone(stage, 1)
    assert not stage.take(Leave)
    stage.agent.joined("other", BROKER, [], stage.now)
    stage.flush()
    spec = ComputationSpec("c", [])
    stage.agent.receive("other", Prepare(1, spec), stage.now)
    stage.agent.receive("other", Prepare(2, spec), stage.now)
    stage.flush()
    assert [bool(message.error) for message in stage.said(Prepared)][-1]


# -- how long a broker may be away ---------------------------------------------------------------


def test_a_broker_is_given_up_after_the_interval() -> None:
    agent = Agent(2, keep_s=90.0)
    agent.joined("b", BROKER, [], 0.0)
    agent.away("b", 10.0)
    agent.tick(99.0)
    assert agent.broker == "b"
    agent.tick(100.0)
    assert agent.broker == ""
    assert any(isinstance(effect, Goodbye) for effect in agent.flush(100.0))


def test_a_broker_may_be_waited_for_without_end() -> None:
    agent = Agent(2, keep_s=float("inf"))
    agent.joined("b", BROKER, [], 0.0)
    agent.away("b", 10.0)
    agent.tick(1e9)
    assert agent.broker == "b"
    agent.check()


# -- the broker that the node dials, and others --------------------------------------------------

HOME = Identity("broker", "home", "home", "0", "3", "Linux")


def with_home() -> Agent:
    """A node that has dialled its broker, which has nothing for it."""
    agent = Agent(2)
    assert agent.seeks_home(0.0)
    agent.joined("home", HOME, [], 0.0, is_home=True)
    agent.flush(0.0)
    return agent


def works(agent: Agent, peer: str, now: float) -> None:
    """Have a broker send something to do."""
    agent.receive(peer, Prepare(1, ComputationSpec("c", [])), now)
    agent.flush(now)


def test_a_node_that_has_its_own_broker_is_not_for_others() -> None:
    agent = with_home()
    assert agent.admit(BROKER, 1.0) == "this node works for home at present"
    assert agent.seeks_home(1.0)


def test_others_may_have_it_while_its_broker_is_away_until_they_need_it_no_more() -> None:
    agent = with_home()
    agent.away("home", 1.0)
    assert agent.admit(BROKER, 2.0) == ""
    agent.joined("b", BROKER, [], 2.0)
    works(agent, "b", 2.0)
    assert not agent.seeks_home(3.0)
    assert agent.admit(HOME, 3.0) == "this node works for broker at present"
    agent.receive("b", Release(1), 4.0)
    agent.flush(4.0)
    agent.template_gone(1)
    assert agent.seeks_home(5.0)
    agent.joined("home", HOME, [], 5.0, is_home=True)
    effects = agent.flush(5.0)
    assert Goodbye("b", "it works for home now", keep=True) in effects
    assert agent.broker == "home" and agent.admit(BROKER, 6.0)


def test_its_broker_does_not_take_it_from_another_that_uses_it() -> None:
    """It was being dialled when the other came."""
    agent = Agent(2)
    agent.joined("b", BROKER, [], 0.0)
    works(agent, "b", 0.0)
    agent.joined("home", HOME, [], 1.0, is_home=True)
    reason = "this node works for broker at present"
    assert agent.flush(1.0) == [Goodbye("home", reason)]
    assert agent.broker == "b" and 1 in agent.computations
    agent.check()


def test_its_broker_gets_its_results_while_another_uses_the_node() -> None:
    agent = with_home()
    agent.away("home", 1.0)
    agent.joined("b", BROKER, [], 2.0)
    agent.kept_for("home", [Done(1, [JobResult(1, 1, FINISHED, 1.0, 2.0, b"r")])], 2.0)
    works(agent, "b", 2.0)
    assert agent.seeks_home(3.0)
    agent.joined("home", HOME, [], 3.0, is_home=True)
    sent = [each.message for each in agent.flush(3.0) if isinstance(each, Send)]
    assert any(isinstance(message, Done) for message in sent)
    assert agent.broker == "b"
    agent.tick(100.0)
    assert not agent.seeks_home(100.0)
    agent.check()
