"""Messages in any order, also such as make no sense: nothing breaks, and nothing is left behind."""

from __future__ import annotations

import random
from contextlib import suppress

import pytest

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    ALLOCATE,
    CLOSE,
    DEALLOCATE,
    DISCOVER,
    FINISHED,
    RESETUP,
    SET_CPUS,
    TERMINATED,
    Allocate,
    BlobPiece,
    BlobPieces,
    BlobRange,
    Body,
    CancelJobs,
    CloseCluster,
    ClusterClosed,
    Define,
    Done,
    Explain,
    FilePut,
    FileSpec,
    FollowJobs,
    Heard,
    Holding,
    JobOptions,
    JobRecord,
    JobResult,
    JobSpec,
    NeedBlobs,
    NodeOffer,
    NodeRequest,
    NodeSpec,
    OpenCluster,
    Prepare,
    Prepared,
    Pulse,
    Records,
    RecordsHeard,
    Release,
    Released,
    Results,
    Returned,
    Run,
    SendFile,
    Started,
    Submit,
    Withdraw,
)
from dispy.protocol.payload import pack_result

from .stage import CLIENT, LAYER, VITALS, Stage

STEPS = 400
JOBS = 40
ACTIONS = (ALLOCATE, DISCOVER, DEALLOCATE, CLOSE, RESETUP, SET_CPUS)
FILE = FileSpec("data", b"d" * 32, 10)
BODY = pack_result(b"", b"", b"", "failed")


class Chaos(Stage):
    """Says anything that can be said, of few jobs and nodes, so that much of it fits."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        specs = (NodeSpec("n1"), NodeSpec("n*", 0, -1, [FILE]))
        super().__init__(self.chance.random() < 0.5, specs, self.chance.random() < 0.3)
        self.submitted: set[int] = set()
        self.ended: dict[int, int] = {}

    def step(self) -> None:
        """Let something happen."""
        self.now += self.chance.random()
        name = f"n{self.chance.randint(1, 3)}"
        event = self.chance.random()
        if event < 0.08:
            self.join(name, self.chance.randint(1, 4))
            self.tell(name, Holding(self.maybe([1]), self.held(name), VITALS))
        elif event < 0.10:
            self.scheduler.left(name, "killed")
        elif event < 0.12:
            self.scheduler.away(name, "silent", self.chance.random() < 0.2, self.now)
        elif event < 0.16:
            self.scheduler.back(name)
        elif event < 0.18:
            self.scheduler.tick(self.now)
        elif event < 0.6:
            self.say(name, self.of_node(name))
        else:
            self.say(CLIENT, self.of_client())
        self.flush()
        self.note_ends()

    def say(self, peer: str, message: Body) -> None:
        """Have a message arrive that may make no sense."""
        if isinstance(message, Submit):
            self.submitted |= {spec.seq for spec in message.jobs}
        with suppress(ProtocolError):
            self.scheduler.receive(peer, message, self.now)
        self.scheduler.check()

    def maybe(self, things: list[int]) -> list[int]:
        return things if self.chance.random() < 0.7 else []

    def held(self, name: str) -> list[tuple[int, int, int]]:
        return [(1, seq, attempt) for seq, attempt in self.begun(name)]

    def begun(self, name: str) -> list[tuple[int, int]]:
        """Return some of the attempts that a node has, and some that it hasn't."""
        node = self.scheduler.nodes.get(name)
        jobs = list(node.allocations[1].jobs.values()) if node and node.allocations else []
        known = [(job.spec.seq, job.spec.attempt) for job in jobs]
        invented = [(self.seq(), self.chance.randint(0, 3))]
        return [each for each in known + invented if self.chance.random() < 0.6]

    def seq(self) -> int:
        return self.chance.randint(1, JOBS)

    def of_node(self, name: str) -> Body:
        """Return what a node might say."""
        piece = BlobRange(FILE.digest, self.chance.randint(0, 50), 1)
        attempts = self.begun(name)
        status = self.chance.choice([FINISHED, TERMINATED])
        ended = [JobResult(*each, status, 0.0, 0.01, BODY) for each in attempts]
        said: list[Body] = [
            Prepared(1),
            Prepared(1, self.chance.choice(["", "no such module"])),
            Done(1, ended),
            Done(1, ended),
            Started(1, [(*each, 5.0) for each in attempts]),
            Returned(1, attempts, self.chance.random() < 0.9),
            Released(1),
            FilePut(1, self.chance.randint(1, 9)),
            Pulse(VITALS),
            Records(1, [JobRecord(*each, 1, 1, b"") for each in attempts]),
            NeedBlobs(1, 0, [piece], self.chance.randint(0, 100)),
        ]
        return self.chance.choice(said)

    def of_client(self) -> Body:
        """Return what a client might say."""
        node = self.chance.randint(0, self.scheduler.state.node_ids + 1)
        number = self.chance.randint(1, 9)
        yes = self.chance.random() < 0.5
        action = self.chance.choice(ACTIONS)
        said: list[Body] = [
            self.new_jobs(node),
            self.new_jobs(0),
            self.new_jobs(0),
            CancelJobs(1, [self.seq()]),
            FollowJobs(1, [self.seq()]),
            NodeRequest(1, number, action, node, [NodeSpec("n2", 0, 1)], 2, yes),
            NodeRequest(1, number, ALLOCATE, node),
            Allocate(1, node, self.chance.randint(0, 2)),
            SendFile(1, number, node, FILE),
            Explain(1, number, self.seq()),
            Define(1, [LAYER]),
            RecordsHeard(1, [Heard(self.seq(), 1, 1)]),
            BlobPieces(1, node, [BlobPiece(FILE.digest, number, b"")]),
            self.opening,
        ]
        return self.chance.choice(said)

    def new_jobs(self, node: int) -> Submit:
        seqs = {self.seq(), self.seq()}
        options = JobOptions(self.chance.randint(-1, 1), 0.0, self.chance.randint(0, 2), node)
        plain = self.chance.random() < 0.5 and not node
        return Submit(1, [JobSpec(seq, 0, b"x", [], None if plain else options) for seq in seqs])

    def note_ends(self) -> None:
        """Note how jobs have ended: each once, but for those that were given up too early."""
        for _, said in self.take(Results):
            for result in said.results:
                before = self.ended.get(result.seq)
                assert before is None or (before, result.status) == (10, FINISHED)
                self.ended[result.seq] = result.status

    def heal(self) -> None:
        """Have all nodes begin anew, and do what they are told until nothing more happens."""
        self.scheduler.back(CLIENT)
        for name in ("n1", "n2", "n3"):
            self.scheduler.left(name, "killed")
            self.join(name, 4)
            self.tell(name, Holding([], []))
            number = self.scheduler.nodes[name].id
            self.tell(CLIENT, NodeRequest(1, 1, ALLOCATE, number, [NodeSpec("*")]))
        while self.sent:
            sent, self.sent = self.sent, []
            for peer, message in sent:
                for answer in self.obey(peer, message):
                    self.say(CLIENT if isinstance(answer, Allocate) else peer, answer)
            self.sent += [each for each in sent if isinstance(each[1], Results)]
            self.flush()
            self.note_ends()

    def obey(self, peer: str, message: Body) -> list[Body]:
        """Return what an honest node or client answers."""
        match message:
            case Prepare(computation=number):
                return [Prepared(number)]
            case Release(computation=number):
                return [Released(number)]
            case Withdraw(computation=number):
                return [Returned(number, [])]
            case Run(computation=number, jobs=jobs):
                ends = [JobResult(job.seq, job.attempt, FINISHED, 0.0, 1.0, b"") for job in jobs]
                return [Done(number, ends)]
            case NodeOffer(cluster=number, node=node):
                return [Allocate(number, node.id, 1)]
        return []

    def close(self) -> None:
        """Close the cluster, and have all nodes clean up."""
        self.say(CLIENT, CloseCluster(1))
        self.flush()
        for name in list(self.scheduler.nodes):
            self.say(name, Released(1))
        self.flush()
        self.note_ends()


@pytest.mark.parametrize("seed", range(60))
def test_no_order_of_messages_breaks_the_scheduler(seed: int) -> None:
    chaos = Chaos(seed)
    for _ in range(STEPS):
        chaos.step()
    chaos.heal()
    assert chaos.ended.keys() == chaos.submitted
    chaos.close()
    assert len(chaos.take(ClusterClosed)) == 1
    state = chaos.scheduler.state
    assert not state.clusters and not state.fetchers
    assert all(not node.allocations and node.load == 0 for node in state.nodes.values())
    assert state.underway == sum(node.underway for node in state.nodes.values())
    chaos.tell(CLIENT, OpenCluster(1, chaos.opening.computation, [NodeSpec("*")]))
