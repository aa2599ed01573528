"""What the scheduler knows: clusters, their jobs, nodes, and who may use which.

Plain records. Only `core.Scheduler` and `placement` change them.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from dispy.protocol.messages import Identity, JobSpec, NodeInfo, OpenCluster

AHEAD_S = 0.05  # a node holds so many seconds of work ahead of its job processes
AHEAD_MAX = 1000  # jobs ahead per CPU at most


class Job:
    """One job between its submission and its final state.

    ``spec.attempt`` is the latest attempt that was sent to a node: 0 before the first.
    """

    __slots__ = ("allocation", "cancelled", "ended", "losses", "spec")

    def __init__(self, spec: JobSpec) -> None:
        self.spec = spec
        self.allocation: Allocation | None = None  # None while it waits in the queue
        self.cancelled = False
        self.ended = False  # it may still lie in the queue, to be skipped
        self.losses = 0  # nodes that were lost with it


class Stage(Enum):
    """How far a node has got with a computation."""

    PREPARING = "preparing"
    READY = "ready"
    FAILED = "failed"
    RELEASING = "releasing"


@dataclass(eq=False)
class Node:
    """A registered node. ``load`` counts the jobs on it, begun or not, of all clusters."""

    id: int
    peer: str
    identity: Identity
    address: str
    online: bool = True
    counted: bool = False  # whether it has told what it holds
    load: int = 0
    lost_at: float = float("inf")  # while it is away: when its lease ends
    allocations: dict[int, Allocation] = field(default_factory=dict)  # by cluster id

    @property
    def info(self) -> NodeInfo:
        """The node as clients see it."""
        who = self.identity
        return NodeInfo(self.id, self.address, who.name, who.cpus, who.platform)


@dataclass(eq=False)
class Allocation:
    """A node's part in a cluster: up to ``cpus`` of its jobs run there at a time.

    ``enter`` changes its stage, with the sums over all allocations that the cluster keeps.
    """

    cluster: Cluster
    node: Node
    cpus: int
    stage: Stage = Stage.PREPARING
    jobs: dict[int, Job] = field(default_factory=dict)  # sent and not ended, by seq
    listed: float | None = None  # its key in the cluster's heap
    withdrawing: bool = False  # an answer to `Withdraw` is due
    stubborn: bool = False  # gave nothing back when asked last; ask after its next result
    breakdowns: int = 0  # how often the node has lost what it had set up

    def enter(self, stage: Stage) -> None:
        """Go on to another stage."""
        was, self.stage = self.stage, stage
        self.cluster.capacity += self.cpus * ((stage is Stage.READY) - (was is Stage.READY))
        self.cluster.failed += (stage is Stage.FAILED) - (was is Stage.FAILED)


@dataclass(eq=False)
class Client:
    """A registered client and its clusters, by the number that it gave them."""

    peer: str
    clusters: dict[int, Cluster] = field(default_factory=dict)
    lost_at: float = float("inf")


@dataclass(eq=False)
class Cluster:
    """A computation and its jobs."""

    id: int
    client: Client
    opened: OpenCluster
    jobs: dict[int, Job] = field(default_factory=dict)  # not ended, by seq
    queue: deque[Job] = field(default_factory=deque)
    waiting: int = 0  # jobs in the queue that have not ended
    allocations: dict[int, Allocation] = field(default_factory=dict)  # by node id
    heap: list[tuple[float, int, Allocation]] = field(default_factory=list)
    surplus: dict[Allocation, None] = field(default_factory=dict)  # hold more than their CPUs
    abandoned: dict[int, int] = field(default_factory=dict)  # seq -> attempt that may return
    last_seq: int = 0  # of all jobs submitted; numbers only grow
    placed: int = 0  # jobs that have left the queue: for their first attempt, or ended
    credit: int = 0
    capacity: int = 0  # CPUs of all allocations that are ready
    failed: int = 0  # allocations whose node could not set the computation up
    run_s: float = -1.0  # how long a job takes, smoothed; below 0: not known
    measured: int = 0  # results in that figure
    closing: bool = False
    troubles: dict[str, str] = field(default_factory=dict)  # address -> what was last said

    @property
    def ahead(self) -> int:
        """Jobs that a node may hold per CPU beyond those that run: none when they are long."""
        if self.run_s < 0:
            return 0
        return min(int(AHEAD_S / (self.run_s + 1e-6)), AHEAD_MAX, 2 * self.measured)
