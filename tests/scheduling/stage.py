"""A scheduler with one client and one cluster, played message by message."""

from __future__ import annotations

from typing import TypeVar

from dispy.broker.core import Scheduler
from dispy.broker.effects import Dial, Effect, Goodbye, Send, Undial
from dispy.protocol.messages import (
    FINISHED,
    TERMINATED,
    Answer,
    Body,
    Code,
    ComputationSpec,
    Done,
    Holding,
    Identity,
    JobOptions,
    JobResult,
    JobSpec,
    NodeRequest,
    NodeSpec,
    OpenCluster,
    Prepare,
    Prepared,
    Results,
    Run,
    Submit,
    Vitals,
)
from dispy.protocol.payload import pack_result, unpack_result

CLIENT = "client"
Kind = TypeVar("Kind")
LAYER = Code("3.11", JobSpec(0, 0, b"f"))
VITALS = Vitals(50.0, 1 << 30, 1 << 40, 99.0)


class Stage:
    """A scheduler, one client with one cluster, and what was said to whom."""

    def __init__(
        self,
        reentrant: bool = False,
        nodes: tuple[NodeSpec, ...] = (NodeSpec("*"),),
        asks: bool = False,
    ) -> None:
        self.scheduler = self.new_scheduler()
        self.now = 0.0
        self.sent: list[tuple[str, Body]] = []
        self.dialled: list[str] = []
        self.undialled: list[str] = []
        self.dismissed: list[str] = []
        self.requests = 0
        self.scheduler.joined(CLIENT, identity("client", CLIENT), [], "", 0.0)
        spec = ComputationSpec("c", [LAYER], pulse_interval=1.0)
        self.opening = OpenCluster(1, spec, list(nodes), reentrant, asks)
        self.tell(CLIENT, self.opening)

    def new_scheduler(self) -> Scheduler:
        """Start a broker."""
        return Scheduler()

    def tell(self, peer: str, message: Body) -> None:
        """Have a message arrive, and let the scheduler act."""
        self.scheduler.receive(peer, message, self.now)
        self.flush()

    def flush(self) -> None:
        """Let the scheduler act."""
        self.scheduler.check()
        self.carry_out(self.scheduler.flush(self.now))
        self.scheduler.check()

    def wait(self, seconds: float) -> None:
        """Let time pass, up to each deadline of the scheduler on the way."""
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, max(self.now + 1e-3, self.scheduler.deadline()))
            self.scheduler.tick(self.now)
            self.flush()

    def carry_out(self, effects: list[Effect]) -> None:
        """Note what the scheduler wants to be done."""
        for effect in effects:
            if isinstance(effect, Send):
                self.sent.append((effect.peer, effect.message))
            elif isinstance(effect, Dial):
                self.dialled.append(effect.address)
            elif isinstance(effect, Undial):
                self.undialled.append(effect.address)
            elif isinstance(effect, Goodbye):
                self.dismissed.append(effect.peer)

    def take(self, kind: type[Kind]) -> list[tuple[str, Kind]]:
        """Take out all messages of a kind, with those they went to."""
        taken: list[tuple[str, Kind]] = [
            (peer, message) for peer, message in self.sent if isinstance(message, kind)
        ]
        self.sent = [each for each in self.sent if not isinstance(each[1], kind)]
        return taken

    def one(self, kind: type[Kind]) -> Kind:
        """Take out the only message of a kind."""
        [(_, message)] = self.take(kind)
        return message

    @property
    def number(self) -> int:
        """What the broker calls the cluster."""
        [number] = self.scheduler.clusters
        return number

    # -- nodes -----------------------------------------------------------------------------

    def node(self, name: str, cpus: int = 1, place: str = "", ready: bool = True) -> int:
        """Have a node join, and set the computation up; return its id."""
        self.join(name, cpus, place)
        self.tell(name, Holding([], []))
        if ready:
            self.prepared()
        return self.scheduler.nodes[name].id

    def join(self, name: str, cpus: int = 1, place: str = "") -> None:
        """Have a node begin a new session."""
        who = identity("node", name, cpus, place)
        self.scheduler.joined(name, who, [], f"127.0.0.1:{9700 + len(name)}", self.now)

    def prepared(self, error: str = "") -> None:
        """Have all nodes that were told to set the computation up say that they have."""
        for peer, prepare in self.take(Prepare):
            self.tell(peer, Prepared(prepare.computation, error))

    def lose(self, name: str) -> None:
        """Have a node end."""
        self.scheduler.left(name, "killed")
        self.flush()

    # -- jobs ------------------------------------------------------------------------------

    def submit(self, *seqs: int, options: JobOptions | None = None) -> None:
        """Have the client submit jobs."""
        self.tell(CLIENT, Submit(1, [JobSpec(seq, 0, b"x", [], options) for seq in seqs]))

    def runs(self) -> dict[str, list[int]]:
        """Take out what nodes were given to run."""
        placed: dict[str, list[int]] = {}
        for peer, run in self.take(Run):
            placed.setdefault(peer, []).extend(job.seq for job in run.jobs)
        return placed

    def done(self, node: str, seq: int, run_s: float = 10.0, attempt: int = 1) -> None:
        """Have a job finish."""
        result = JobResult(seq, attempt, FINISHED, 1.0, 1.0 + run_s, b"r")
        self.tell(node, Done(self.number, [result]))

    def fail(self, node: str, seq: int, attempt: int = 1) -> None:
        """Have a job fail."""
        body = pack_result(b"", b"out", b"", "ValueError: no")
        self.tell(node, Done(self.number, [JobResult(seq, attempt, TERMINATED, 1.0, 2.0, body)]))

    def ends(self) -> dict[int, JobResult]:
        """Take out the results."""
        said = self.take(Results)
        return {result.seq: result for _, message in said for result in message.results}

    def results(self) -> dict[int, int]:
        """Take out the status of each job that was reported."""
        return {seq: result.status for seq, result in self.ends().items()}

    # -- requests --------------------------------------------------------------------------

    def ask(self, action: str, node: int = 0, **fields: object) -> Answer:
        """Have the client ask something about nodes, and return the answer."""
        self.requests += 1
        request = NodeRequest(1, self.requests, action, node)
        for name, value in fields.items():
            setattr(request, name, value)
        self.tell(CLIENT, request)
        answer = self.one(Answer)
        assert answer.request == self.requests and answer.cluster == 1
        return answer


def identity(role: str, name: str, cpus: int = 0, place: str = "") -> Identity:
    """Say who a process is."""
    return Identity(role, name, name, "0", "3", "Linux", cpus, place)


def text_of(result: JobResult) -> str:
    """Return what a failure says."""
    return unpack_result(result.payload or result.parts[0].tobytes()).exception
