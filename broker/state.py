"""What the scheduler knows: clusters, their jobs, nodes, and who may use which.

Plain records, and the few methods that keep sums beside the facts they are of. Each subject has
one file that changes them; `core` lists these. `checks` says what always holds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    BlobRange,
    Body,
    ComputationSpec,
    FileSpec,
    Heard,
    Identity,
    JobRecord,
    JobResult,
    JobSpec,
    NodeInfo,
    NodeSpec,
    OpenCluster,
    Results,
    Vitals,
)

from .distance import Distance, ahead
from .durable import ClusterMeta, JobMark
from .effects import Effect, KeepCluster, Send
from .line import Backlog, Line
from .rates import Rate
from .seen import Seen
from .settings import Settings
from .sharing import Account, Sharing
from .warehouse import Warehouse

AHEAD_S = 0.05  # a node holds so many seconds of work ahead of its job processes
AHEAD_MAX = 1000  # jobs ahead per CPU at most
ADDRESSES_MAX = 16  # of a node that count


class Job:
    """One job between its submission and its final state.

    ``spec.attempt`` is the latest attempt that was sent to a node: 0 before the first.
    """

    __slots__ = (
        "allocation",
        "batch",
        "cancelled",
        "ended",
        "failures",
        "heard",
        "index",
        "losses",
        "spec",
        "started",
    )

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.allocation: Allocation | None = None  # None while it waits in a line
        self.batch: Batch | None = None  # what it is kept in; None without a journal
        self.index = 0  # its place in there
        self.cancelled = False
        self.ended = False  # it may still lie in a line, to be skipped
        self.losses = 0  # nodes that were lost with it
        self.heard: list[Heard] | None = None  # the last answers to what this attempt says
        self.failures = 0  # attempts that have failed, of a job that may be tried again
        # Of an attempt that has been running for a while: its start in seconds since the
        # epoch, and when the broker heard of it.
        self.started: tuple[float, float] | None = None


@dataclass(eq=False, slots=True)
class Batch:
    """Jobs that are kept on disk together, as they came; and which of them have ended.

    It is either loaded, and its jobs are in ``cluster.jobs``, or waits in ``cluster.backlog``.
    """

    id: int
    cluster: Cluster
    first: int  # the lowest seq
    last: int  # the highest
    count: int
    plain: bool  # its jobs can wait on disk: see `batches`
    priority: int  # when it is plain
    ended: bytearray  # bits by place in the batch, the lowest first
    left: int  # jobs that have not ended
    marks: dict[int, JobMark] = field(default_factory=dict)  # jobs that have been at a node
    followed: set[int] = field(default_factory=set)  # places of jobs whose output is to be told
    loaded: bool = True
    loading: bool = False  # it is being read
    mean_bytes: int = 0  # payload of a job; known when it is loaded


class Stage(Enum):
    """How far a node has got with a computation."""

    OFFERED = "offered"  # the client has been asked whether to use it
    UNUSED = "unused"  # ... and doesn't want to
    PREPARING = "preparing"
    READY = "ready"
    FAILED = "failed"
    CLOSING = "closing"  # gets no more jobs, and is released when those that it has have ended
    RELEASING = "releasing"
    CLOSED = "closed"


IDLE = (Stage.UNUSED, Stage.CLOSED)  # nothing is at the node, nor will be unless asked for
PENDING = (Stage.OFFERED, Stage.PREPARING, Stage.READY)  # it has jobs, or may have soon


class Share(msgspec.Struct, frozen=True, gc=False):
    """How much of a node a cluster uses, and with what."""

    cpus: int
    files: list[FileSpec] = []  # for this node only
    setup_args: JobSpec | None = None


@dataclass(eq=False, slots=True)
class Past:
    """What is remembered of a node, and of those that ran before at its place."""

    drained: str = ""  # why an operator wants it to get no jobs
    set_aside: str = ""  # why the broker doesn't use it
    until: float = float("inf")  # when it is used again by itself
    returned: bool = False  # it was used again by itself; the next time it won't be
    mishaps: list[tuple[float, int]] = field(default_factory=list)  # when; cluster, or 0: lost
    # Clusters that it could not set up since it last set one up; whether another node could.
    unfit: dict[int, bool] = field(default_factory=dict)
    name: str = ""
    address: str = ""
    kept_id: int = 0  # what the journal has it under; 0: it hasn't


@dataclass(eq=False, slots=True)
class Node:
    """A registered node. ``load`` counts the jobs on it, begun or not, of all clusters."""

    id: int
    peer: str
    identity: Identity
    address: str  # as it was dialled, or as it says
    online: bool = True
    counted: bool = False  # whether it has told what it holds
    dialled: bool = True  # by the broker; otherwise it has come by itself
    via: str = ""  # the name of the relay that it is behind
    relay: str = ""  # what was dialled to get to that; empty: nothing was
    reached: str = ""  # which address has worked, when it was dialled by several
    stopping: bool = False  # it has told all that may have begun there, and will be gone soon
    load: int = 0
    work_s: float = 0.0  # of all clusters, as `Cluster.unit_at` counts it
    distance: Distance = field(default_factory=Distance)
    lost_at: float = float("inf")  # while it is away: when its lease ends
    vitals: Vitals | None = None
    allocations: dict[int, Allocation] = field(default_factory=dict)  # by cluster id
    # Pieces of blobs that it needs and that its client wasn't asked for yet, by digest and offset.
    held: dict[tuple[Allocation, bytes, int], BlobRange] = field(default_factory=dict)
    underway: int = 0  # pieces of blobs that were sent to it and that it hasn't had yet
    sent_at: float = 0.0  # when the last of them was sent
    had: int = 0  # pieces that it has had, by its own count
    past: Past = field(default_factory=Past)
    out_of_service: str = ""  # why it takes no jobs at present, by its own word
    since: float = 0.0  # when it registered, in seconds since the epoch
    done: int = 0  # jobs that have ended there

    @property
    def addresses(self) -> list[str]:
        """Where it can be reached, "host:port": where it was, then what it says itself."""
        who = self.identity
        known = self.reached or self.address, who.address, *who.addresses[:ADDRESSES_MAX]
        return [address for address in dict.fromkeys(known) if address]

    @property
    def barred(self) -> str:
        """Why it gets no jobs of any cluster; empty: it may."""
        past = self.past
        if past.drained:
            return f"drained: {past.drained}"
        if past.set_aside:
            return f"set aside: {past.set_aside}"
        return self.out_of_service

    @property
    def info(self) -> NodeInfo:
        """The node as clients see it."""
        who = self.identity
        where = self.door, who.name, who.cpus, who.platform, self.addresses, self.relay
        return NodeInfo(self.id, *where)

    @property
    def door(self) -> str:
        """Where it is; of several addresses the one that has worked."""
        return self.reached or self.address or self.identity.address

    @property
    def title(self) -> str:
        """The node as people call it."""
        where = self.door
        return f"{self.identity.name} ({where})" if where else self.identity.name


@dataclass(eq=False, slots=True)
class Allocation:
    """A node's part in a cluster: up to ``share.cpus`` of its jobs run there at a time.

    ``enter``, ``suspend`` and ``resize`` also keep the sums that the cluster has of them all.
    """

    cluster: Cluster
    node: Node
    share: Share
    stage: Stage = Stage.PREPARING
    cpus: int = 0  # those of the share
    is_open: bool = False  # takes jobs: it is ready, and not suspended
    suspended: bool = False  # deallocated: set up, but it gets no jobs
    announced: bool = False  # the client has been told that it is ready
    since: float = 0.0  # when its set-up began
    error: str = ""  # why its set-up failed
    jobs: dict[int, Job] = field(default_factory=dict)  # sent and not ended, by seq
    pinned: Line | None = None  # jobs that only this node may run, once there are such
    listed: float | None = None  # its key in the cluster's heap
    work_s: float = 0.0  # what its jobs count of the time that a node may hold ahead
    withdrawing: bool = False  # an answer to `Withdraw` is due
    stubborn: bool = False  # gave nothing back when asked last; ask after its next result
    breakdowns: int = 0  # how often the node has lost what it had set up
    terminating: bool = False  # CLOSING: its jobs are killed
    anew: bool = False  # CLOSING, RELEASING: to be set up again after that
    kept: bool = False  # its files at the node wait for that
    puts: dict[int, FileSpec] = field(default_factory=dict)  # by request; not there yet
    asked: dict[tuple[bytes, int], BlobRange] = field(default_factory=dict)  # of the client

    def __post_init__(self) -> None:
        self.cpus = self.share.cpus

    def enter(self, stage: Stage) -> None:
        """Go on to another stage."""
        was, self.stage = self.stage, stage
        cluster = self.cluster
        cluster.failed += (stage is Stage.FAILED) - (was is Stage.FAILED)
        cluster.idle += (stage in IDLE) - (was in IDLE)
        self.reopen()

    def suspend(self, suspended: bool) -> None:
        """Give it no jobs, or jobs again."""
        self.suspended = suspended
        peers, peer = self.cluster.suspended, self.node.peer
        if suspended:
            peers.add(peer)
        else:
            peers.discard(peer)
        self.reopen()

    def resize(self, cpus: int) -> None:
        """Use another number of CPUs."""
        if self.is_open:
            self.cluster.capacity += cpus - self.cpus
        self.cpus = cpus
        self.share = msgspec.structs.replace(self.share, cpus=cpus)
        if len(self.jobs) > cpus:
            self.cluster.surplus[self] = None
        else:
            self.cluster.surplus.pop(self, None)

    def reopen(self) -> None:
        """See anew whether it takes jobs: its node may have been drained, or resumed."""
        is_open = self.stage is Stage.READY and not self.suspended and not self.node.barred
        self.cluster.capacity += self.cpus * (is_open - self.is_open)
        self.is_open = is_open


@dataclass(eq=False, slots=True)
class Client:
    """A client and its clusters, by the number that it gave them."""

    peer: str
    clusters: dict[int, Cluster] = field(default_factory=dict)
    lost_at: float = float("inf")  # while it is away: when its lease ends
    user: str = ""  # "login@host"
    name: str = ""  # for people
    away_since: float | None = None  # None: it is there
    absent: bool = False  # away for so long that it has no session: nothing can be said to it


@dataclass(eq=False, slots=True)
class Cluster:
    """A computation and its jobs."""

    id: int
    client: Client
    opened: OpenCluster
    computation: ComputationSpec  # with all layers of code that have come since
    specs: list[NodeSpec]  # which nodes to use: the first that matches one says how
    addresses: set[str]  # to be dialled
    untried: set[str] = field(default_factory=set)  # of these, nothing has come of so far
    begun_at: float = float("-inf")  # when nodes were asked for
    asks: bool = False  # nodes that are found are offered to the client
    jobs: dict[int, Job] = field(default_factory=dict)  # not ended, by seq
    line: Line = field(default_factory=Line)  # jobs that wait for any node
    pinned: int = 0  # jobs that wait for one node each
    open_pinned: dict[Allocation, None] = field(default_factory=dict)  # may take such jobs
    in_turns: bool = False  # it is listed among those that wait
    account: Account = field(default_factory=Account)  # what it has had
    allocations: dict[int, Allocation] = field(default_factory=dict)  # by node id
    # What was decided by request for a node, by its instance: it holds when the node comes
    # back. An entry for each node that such a request ever was about.
    shares: dict[str, Share] = field(default_factory=dict)
    closed: dict[int, str] = field(default_factory=dict)  # node id -> peer, closed by request
    suspended: set[str] = field(default_factory=set)  # nodes that get no jobs by request, by peer
    heap: list[tuple[float, int, Allocation]] = field(default_factory=list)
    surplus: dict[Allocation, None] = field(default_factory=dict)  # hold more than their CPUs
    abandoned: dict[int, int] = field(default_factory=dict)  # seq -> attempt that may return
    seen: Seen = field(default_factory=Seen)  # the jobs that have been submitted
    placed: int = 0  # jobs that have left the line: for their first attempt, or ended
    credit: int = 0
    grant_at: int = 0  # jobs placed, before which no credit is due
    capacity: int = 0  # CPUs of all allocations that take jobs
    failed: int = 0  # allocations whose node could not set the computation up
    idle: int = 0  # allocations that are unused or closed
    run_s: float = -1.0  # how long a job takes, smoothed; below 0: not known
    measured: int = 0  # results in that figure
    unit_s: float = AHEAD_S  # what a job counts of the time that a node may hold ahead
    rate: Rate = field(default_factory=Rate)  # jobs that end
    fit: list[int] = field(default_factory=list)  # two of the nodes that have set it up
    # What is known of it for people, and for a journal: see `durable.ClusterMeta`.
    meta: ClusterMeta = field(default_factory=lambda: ClusterMeta("", 0, "", 0.0))
    submitted: int = 0  # jobs that were taken so far, in all
    batches: dict[int, Batch] = field(default_factory=dict)  # with jobs that haven't ended, by id
    backlog: Backlog = field(default_factory=Backlog)  # those of them that wait on disk
    loaded_bytes: int = 0  # payload of the batches' jobs that are in memory
    fixed_jobs: int = 0  # of these, jobs that can't wait on disk
    fixed_bytes: int = 0  # their payload
    # With a journal, results that the client hasn't heard, by the number of their record:
    unheard: dict[int, Results] = field(default_factory=dict)  # in memory
    unheard_bytes: int = 0  # of these
    stored: dict[int, int] = field(default_factory=dict)  # only on disk; of how many jobs
    untold: list[int] = field(default_factory=list)  # not sent, since the client is away
    unread: deque[int] = field(default_factory=deque)  # to be sent, once those before are read
    reading: int = 0  # how many of them are being read
    closing: bool = False
    waits: bool = False  # for others to close, since it or one of them is exclusive
    # What jobs have said while the client was absent, by seq; with the node's id.
    unsaid: dict[int, list[tuple[int, JobRecord]]] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)  # address -> what was last said

    @property
    def number(self) -> int:
        """What the client calls it."""
        return self.opened.cluster

    @property
    def ahead(self) -> int:
        """Jobs that a node may hold per CPU beyond those that run: none when they are long."""
        if self.run_s < 0:
            return 0
        return min(int(AHEAD_S / (self.run_s + 1e-6)), AHEAD_MAX, 2 * self.measured)

    def unit_at(self, node: Node) -> float:
        """Return what a job counts of the time that this node may hold ahead."""
        far_s = node.distance.far_s
        if not far_s:
            return self.unit_s
        count = ahead(self.run_s, far_s, self.ahead, AHEAD_S, AHEAD_MAX)
        return AHEAD_S / (1 + min(count, 2 * self.measured))

    def line_of(self, spec: JobSpec) -> Line:
        """Return the line that a job waits in."""
        if spec.options is not None and spec.options.node:
            line = self.allocations[spec.options.node].pinned
            assert line is not None
            return line
        return self.line


@dataclass(frozen=True)
class About:
    """What the broker's shell knows of it, for people."""

    name: str = ""
    software: str = ""
    since: float = 0.0  # seconds since the epoch
    journal: str = ""  # its folder; empty: none
    journal_bytes: int = 0


@dataclass(eq=False, slots=True)
class State:
    """Everything, and what is to be said at the next flush."""

    cluster_ids: int  # the last one given
    settings: Settings = field(default_factory=Settings)
    wall_offset_s: float = 0.0  # turns ``now`` into seconds since the epoch
    node_ids: int = 0
    clients: dict[str, Client] = field(default_factory=dict)  # by peer
    nodes: dict[str, Node] = field(default_factory=dict)  # by peer
    away: dict[Node, None] = field(default_factory=dict)  # of these, those that are not online
    pulsed: dict[Node, None] = field(default_factory=dict)  # whose clients are to be told of that
    pulses_at: float = float("-inf")  # when they may be told next
    places: dict[str, Node] = field(default_factory=dict)  # that only one process can have
    clusters: dict[int, Cluster] = field(default_factory=dict)
    late_results: int = 0  # of attempts that were given up; dropped
    hopeful: dict[Cluster, None] = field(default_factory=dict)  # to be looked at again
    trouble: str = ""  # why no new jobs are taken at present, for people; empty: they are
    unheard_bytes: int = 0  # of all clusters' results that are in memory
    record_ids: int = 0  # the last number given to a batch or to results that are kept
    # After a start: nodes have until then to come back with jobs of before. 0: no such start.
    recovering_until: float = 0.0
    batches: dict[int, Batch] = field(default_factory=dict)  # of all clusters, by id
    dirty: dict[Batch, None] = field(default_factory=dict)  # changed since last flush
    accepted: dict[Cluster, list[tuple[int, int]]] = field(default_factory=dict)  # to be told
    unread: dict[Cluster, None] = field(default_factory=dict)  # have such results
    backlogged: dict[Cluster, None] = field(default_factory=dict)  # may have to load a batch
    about: About = field(default_factory=About)
    rate: Rate = field(default_factory=Rate)  # jobs that end
    pasts: dict[str, Past] = field(default_factory=dict)  # by place, see `mishaps`
    aside: dict[str, Past] = field(default_factory=dict)  # of these, the ones set aside
    barred_anew: dict[Node, None] = field(default_factory=dict)  # set aside since last flush
    unreached: dict[str, str] = field(default_factory=dict)  # of ``settings.nodes``: why not
    now: float = 0.0  # when the present event happens
    sharing: Sharing = field(init=False)  # clusters with waiting jobs, and who is next
    # Nodes that may take more than before, the latest last; what came before the first of them
    # is no longer known. Up to ``placed`` they were offered to all that waited.
    freed: list[Node] = field(default_factory=list)
    freed_before: int = 0
    placed: int = 0
    charged: dict[Cluster, None] = field(default_factory=dict)  # will be: attempts have ended
    hoarders: dict[Cluster, None] = field(default_factory=dict)  # may have jobs to take back
    underway: int = 0  # pieces of blobs that clients were asked for and nodes haven't had
    fetchers: deque[Node] = field(default_factory=deque)  # nodes with requests that are held
    warehouse: Warehouse | None = None  # files of which the broker has a copy, when it is shared
    effects: list[Effect] = field(default_factory=list)
    runs: dict[Allocation, list[JobSpec]] = field(default_factory=dict)
    results: dict[tuple[Cluster, int], list[JobResult]] = field(default_factory=dict)
    requeued: dict[Cluster, list[int]] = field(default_factory=dict)
    idle_nodes: dict[Node, None] = field(default_factory=dict)  # a CPU free since last flush
    uncredited: dict[Cluster, None] = field(default_factory=dict)
    # Clusters that will be opened when they are taken again, by peer and its number.
    unopened: dict[tuple[str, int], OpenCluster] = field(default_factory=dict)
    taken: dict[tuple[str, int], int] = field(default_factory=dict)  # from peers, see `attaching`
    exclusives: dict[Cluster, None] = field(default_factory=dict)  # clusters, see `exclusive`
    clients_due: float = float("inf")  # when something is to be done about a client that is away

    def __post_init__(self) -> None:
        self.sharing = Sharing(self.settings.policy, self.settings.weights)

    def send(self, peer: str, message: Body) -> None:
        """Have a message sent to a peer."""
        self.effects.append(Send(peer, message))

    def tell(self, cluster: Cluster, message: Body) -> None:
        """Have a message sent to a cluster's client; one that is absent gets nothing."""
        if not cluster.client.absent:
            self.effects.append(Send(cluster.client.peer, message))

    def keep(self, cluster: Cluster, whole: bool = False) -> None:
        """Have what has changed of a cluster kept, with a journal; ``whole``: also its code."""
        if not self.settings.durable:
            return
        opened = None
        if whole:
            opened = msgspec.structs.replace(
                cluster.opened, computation=cluster.computation, nodes=list(cluster.specs)
            )
        self.effects.append(KeepCluster(cluster.id, cluster.meta, opened))

    def order(self, allocation: Allocation, message: Body) -> None:
        """Have a message sent to an allocation's node."""
        self.effects.append(Send(allocation.node.peer, message))

    def client(self, peer: str) -> Client:
        """Return a client; `ProtocolError` if the peer is none."""
        client = self.clients.get(peer)
        if client is None:
            raise ProtocolError("only a client may say this")
        return client

    def node(self, peer: str) -> Node:
        """Return a node; `ProtocolError` if the peer is none."""
        node = self.nodes.get(peer)
        if node is None:
            raise ProtocolError("only a node may say this")
        return node

    def cluster(self, peer: str, number: int) -> Cluster | None:
        """Return the cluster that a client means; None if it is closed."""
        return self.client(peer).clusters.get(number)

    def allocation(self, peer: str, computation: int) -> Allocation | None:
        """Return the allocation that a node means."""
        return self.node(peer).allocations.get(computation)
