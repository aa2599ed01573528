"""All messages of the protocol: plain typed values, with no behaviour and no I/O.

A header frame holds one `Frame`: a handshake message or an `Envelope` with many messages.
Fields may be appended, with a default, in a minor version; anything else is a new major one.
Every message that concerns jobs is a batch, so that no work is done per job that can be
done per batch.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

VERSION_MAJOR = 1  # peers of another major version are refused
VERSION_MINOR = 0  # the lower of two minor versions is spoken

# Final states of a job; the numbers are those of DispyJob.
CANCELLED = 8
TERMINATED = 9
ABANDONED = 10
FINISHED = 11

Buffer: TypeAlias = "bytes | bytearray | memoryview"


class Large:
    """A payload that travels beside its header: a size in the header, chunks in frames.

    ``chunks`` are buffers of at most ``wire.CHUNK_BYTES`` each; between decoding a header
    and the arrival of its frames they are still missing and the list is empty.
    """

    __slots__ = ("chunks", "size")

    def __init__(self, size: int, chunks: list[Buffer]) -> None:
        self.size = size
        self.chunks = chunks

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Large) and self.tobytes() == other.tobytes()

    __hash__ = None  # type: ignore[assignment]

    def tobytes(self) -> bytes:
        """Join the chunks (a copy, unless there is just one `bytes`)."""
        if len(self.chunks) == 1 and isinstance(self.chunks[0], bytes):
            return self.chunks[0]
        return b"".join(self.chunks)


class Struct(msgspec.Struct, array_like=True, gc=False):
    """Base of the values inside messages that change on their way."""


class Frozen(msgspec.Struct, array_like=True, gc=False, frozen=True):
    """Base of the values inside messages that never change."""


class Identity(Frozen, frozen=True):
    """Who a peer is; it comes with the handshake and never changes while the peer lives."""

    role: str  # "client", "node", "broker" or "relay"
    instance: str  # random, new at each start of the process
    name: str  # for people: a host name, or what --name says
    software: str  # version of this project
    python: str  # "3.11.7"
    platform: str  # as platform.platform() tells
    cpus: int = 0  # nodes: job processes at a time
    place: str = ""  # nodes: machine and port; a new instance at a place proves the old one gone
    address: str = ""  # nodes: the address of their own door, "host:port"


class JobSpec(Struct):
    """One job on its way to a job process.

    ``payload`` is opaque to all but the job process. When it is empty, the first of
    ``parts`` is the payload, and the others are its out-of-band buffers.
    """

    seq: int  # unique in its cluster
    attempt: int  # 0 from a client; the broker counts from 1
    payload: bytes
    parts: list[Large] = []


class JobResult(Struct):
    """How one attempt of a job ended. Times are seconds since the epoch, at the node."""

    seq: int
    attempt: int
    status: int  # CANCELLED, TERMINATED, ABANDONED or FINISHED
    start: float
    end: float
    payload: bytes
    parts: list[Large] = []


class NodeSpec(Frozen, frozen=True):
    """One entry of ``nodes=``: where to find a node, and how much of it to use."""

    pattern: str  # IP address, host name, or wildcard over addresses
    port: int = 0  # 0: a pattern only, nothing to dial
    cpus: int = 0  # 0: all; negative: all but so many


class NodeInfo(Frozen, frozen=True):
    """A node as a client sees it."""

    id: int  # of this broker
    address: str
    name: str
    cpus: int
    platform: str


# -- handshake: one of these is the first thing said on a connection ---------------------


class Message(msgspec.Struct, array_like=True, gc=False):
    """Base of all that can be sent."""


class Hello(Message, tag=1):
    """The dialling side says who it is, and which session it would like to continue."""

    major: int
    minor: int
    identity: Identity
    session: str = ""  # empty: a new one
    received: int = 0  # envelopes of that session that have arrived here


class Welcome(Message, tag=2):
    """The listening side agrees. Another ``session`` than asked for: the old one is over."""

    minor: int
    identity: Identity
    session: str
    epoch: int  # how many connections this session has had
    received: int = 0


class Refused(Message, tag=3):
    """The listening side doesn't agree; ``reason`` is written for the user."""

    reason: str


class Unknown(Message, tag=4):
    """The receiver's connection is not registered here (any more): say Hello again."""


class Goodbye(Message, tag=5):
    """The sender ends the session on purpose; nothing more will come, nothing is kept."""

    reason: str = ""


# -- client to broker ---------------------------------------------------------------------


class OpenCluster(Message, tag=10):
    """A new computation. Answered by `ClusterOpened`."""

    cluster: int  # chosen by the client, unique for the client
    name: str
    code: JobSpec  # its payload: the pickled function; seq and attempt are 0
    nodes: list[NodeSpec]
    reentrant: bool = False
    max_tasks_per_child: int = 1  # 0: no limit
    pulse_interval: float = 5.0  # seconds
    cancel_grace: float = 5.0  # seconds from SIGINT to SIGTERM


class Submit(Message, tag=11):
    """Jobs to run. Sent again after a new session; known jobs are not taken twice."""

    cluster: int
    jobs: list[JobSpec]


class CancelJobs(Message, tag=12):
    """End these jobs; each still ends with a result."""

    cluster: int
    jobs: list[int]


class CloseCluster(Message, tag=13):
    """No more jobs; cancel those that are left, clean the nodes up, then `ClusterClosed`."""

    cluster: int


# -- broker to client ---------------------------------------------------------------------


class ClusterOpened(Message, tag=20):
    """The computation is known; ``credit`` jobs may be sent before the first `Credit`."""

    cluster: int
    credit: int


class Credit(Message, tag=21):
    """The client may have submitted ``limit`` jobs of the cluster in all, and no more yet."""

    cluster: int
    limit: int


class Results(Message, tag=22):
    """Jobs that ended at ``node`` (its id; 0: they never got to one)."""

    cluster: int
    node: int
    results: list[JobResult]


class JobsRunning(Message, tag=23):
    """Jobs that have been running for a while; shorter ones are only reported when they end."""

    cluster: int
    node: int
    jobs: list[tuple[int, float]]  # seq, start in seconds since the epoch


class NodeReady(Message, tag=24):
    """The node has set the computation up and will get jobs."""

    cluster: int
    node: NodeInfo
    cpus: int = 0  # of the node's, that the cluster may use; 0: all


class NodeGone(Message, tag=25):
    """The node gets no more jobs of this cluster, for ``reason``."""

    cluster: int
    node: int
    reason: str


class NodeTrouble(Message, tag=26):
    """A node that was asked for can't be used so far; it is tried again."""

    cluster: int
    address: str
    reason: str


class ClusterClosed(Message, tag=27):
    """All nodes have cleaned up; the cluster is forgotten."""

    cluster: int


# -- broker to node -----------------------------------------------------------------------


class Prepare(Message, tag=40):
    """Make the computation ready to run jobs. Answered by `Prepared`."""

    computation: int  # unique for the broker
    name: str
    code: JobSpec
    max_tasks_per_child: int
    cancel_grace: float
    cpus: int = 0  # so many jobs at a time; 0: as many as the node has CPUs


class Run(Message, tag=41):
    """Jobs for this node: run as many at a time as there are CPUs, keep the others ready."""

    computation: int
    jobs: list[JobSpec]


class Withdraw(Message, tag=42):
    """Give up to ``count`` jobs back that have not begun. Answered by `Returned`."""

    computation: int
    count: int


class Kill(Message, tag=43):
    """End these attempts (seq, attempt); each still ends with a result."""

    computation: int
    jobs: list[tuple[int, int]]


class Release(Message, tag=44):
    """End what still runs of the computation, remove all of it; answered by `Released`."""

    computation: int


class Inventory(Message, tag=45):
    """What a node should hold, after a new session: it drops all else.

    Sent by the broker as the answer to `Holding`.
    """

    jobs: list[tuple[int, int, int]]  # computation, seq, attempt


# -- node to broker -----------------------------------------------------------------------


class Prepared(Message, tag=60):
    """The computation can run jobs, unless ``error`` says why not."""

    computation: int
    error: str = ""


class Done(Message, tag=61):
    """Attempts that have ended."""

    computation: int
    results: list[JobResult]


class Started(Message, tag=62):
    """Attempts that have been running for a while: seq, attempt, start since the epoch."""

    computation: int
    jobs: list[tuple[int, int, float]]


class Returned(Message, tag=63):
    """Attempts that have not begun and will not, here (seq, attempt)."""

    computation: int
    jobs: list[tuple[int, int]]
    asked: bool = True  # it answers a `Withdraw`; False: the node is being stopped


class Released(Message, tag=64):
    """Nothing is left of the computation at this node."""

    computation: int


class Holding(Message, tag=65):
    """What a node holds when a new session begins: all attempts not yet reported."""

    computations: list[int]
    jobs: list[tuple[int, int, int]]  # computation, seq, attempt


Body: TypeAlias = (
    OpenCluster
    | Submit
    | CancelJobs
    | CloseCluster
    | ClusterOpened
    | Credit
    | Results
    | JobsRunning
    | NodeReady
    | NodeGone
    | NodeTrouble
    | ClusterClosed
    | Prepare
    | Run
    | Withdraw
    | Kill
    | Release
    | Inventory
    | Prepared
    | Done
    | Started
    | Returned
    | Released
    | Holding
)


class Envelope(Message, tag=6):
    """Messages of a session, in order, and how much of the other side's has arrived.

    ``seq`` counts envelopes from 1; 0 is a bare sign of life, which needs no acknowledgement.
    """

    epoch: int
    seq: int
    ack: int
    messages: list[Body]
    more: bool = False  # only chunks, for a header that is still to come
    sent: int = 0  # in a sign of life: the last envelope sent before it


Frame: TypeAlias = Hello | Welcome | Refused | Unknown | Goodbye | Envelope
