"""The client's state machine: which jobs wait here, which the broker has, which have ended.

It does no I/O and reads no clock: each call is given one event and, where it matters, the
time, and changes the state; `take` returns what is to be done. Only this file changes the
state. It decides when a job has ended; what the job then looks like is `ledger`'s subject.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, NamedTuple, TypeAlias

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FINISHED,
    TERMINATED,
    Body,
    CancelJobs,
    CloseCluster,
    ClusterClosed,
    ClusterOpened,
    Credit,
    JobResult,
    JobSpec,
    JobsRunning,
    NodeGone,
    NodeInfo,
    NodeReady,
    NodeSpec,
    NodeTrouble,
    OpenCluster,
    Results,
    Submit,
)
from dispy.protocol.payload import pack_result

from .job import DispyJob

BATCH_JOBS = 500  # in one message, so that the broker's other clients get their turn
BATCH_BYTES = 1 << 20  # of payload in one message, unless a single job has more
PATIENCE_S = 3.0  # without any node, before the user is told
TROUBLES_MAX = 100  # of one cluster that are remembered, so that they are told only once

STATUSES = {CANCELLED, TERMINATED, ABANDONED, FINISHED}


class Send(NamedTuple):
    """Effect: send a message to the broker."""

    message: Body


class Ended(NamedTuple):
    """Effect: these jobs have ended at a node (0: at none)."""

    cluster: int
    node: int
    jobs: list[tuple[DispyJob, JobResult]]


class Begun(NamedTuple):
    """Effect: these jobs are running since, in seconds since the epoch."""

    cluster: int
    node: int
    jobs: list[tuple[DispyJob, float]]


class NodeUp(NamedTuple):
    """Effect: a node is ready for the cluster's jobs."""

    cluster: int
    node: NodeInfo
    cpus: int  # of the node's, that the cluster may use; 0: all


class NodeDown(NamedTuple):
    """Effect: a node gets no more jobs of the cluster."""

    cluster: int
    node: int
    reason: str


class Warned(NamedTuple):
    """Effect: tell the user."""

    text: str


class Closed(NamedTuple):
    """Effect: the cluster is over, and nothing more will be said about it."""

    cluster: int


Effect: TypeAlias = Send | Ended | Begun | NodeUp | NodeDown | Warned | Closed


@dataclass(eq=False)
class Cluster:
    """What the core knows of one cluster; ``unfinished`` is the fact, the rest follows it."""

    opening: OpenCluster
    patient_until: float | None  # when to complain that there is no node
    unfinished: dict[int, DispyJob] = field(default_factory=dict)  # in order of submission
    abandoned: dict[int, DispyJob] = field(default_factory=dict)  # may still finish
    waiting: deque[DispyJob] = field(default_factory=deque)  # not sent; some have ended here
    cancelled: dict[int, None] = field(default_factory=dict)  # sent, and to be cancelled
    nodes: dict[int, NodeInfo] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)  # address to reason
    sent: int = 0  # how many jobs, in this session with the broker
    sent_seq: int = 0  # the last of them; jobs are sent in order
    credit: int = 0  # how many may be sent
    closing: bool = False


class Core:
    """All clusters of this process at one broker."""

    def __init__(self) -> None:
        self.clusters: dict[int, Cluster] = {}
        self.joined = False  # there is a session with the broker
        self._effects: list[Effect] = []
        self._sendable: dict[int, None] = {}  # clusters that may have jobs to send
        self._next_complaint = float("inf")

    # -- what users want -----------------------------------------------------------------

    def open(self, opening: OpenCluster, now: float) -> None:
        """Begin with a cluster; its number is new."""
        assert opening.cluster not in self.clusters
        self.clusters[opening.cluster] = Cluster(opening, now + PATIENCE_S)
        self._next_complaint = min(self._next_complaint, now + PATIENCE_S)
        if self.joined:
            self._effects.append(Send(opening))

    def submit(self, number: int, job: DispyJob) -> None:
        """Queue a job. It may be on its way after this, or after any later event."""
        cluster = self.clusters.get(number)
        if cluster is None:  # the cluster ended by itself, since the broker is gone
            result = JobResult(job._seq, 0, CANCELLED, 0.0, 0.0, b"")
            self._effects.append(Ended(number, 0, [(job, result)]))
            return
        assert not cluster.unfinished or job._seq > next(reversed(cluster.unfinished))
        cluster.unfinished[job._seq] = job
        cluster.waiting.append(job)
        self._sendable[number] = None

    def cancel(self, number: int, seq: int) -> None:
        """End a job as soon as possible; one that has ended stays as it is."""
        cluster = self.clusters.get(number)
        if cluster is None or seq not in cluster.unfinished or seq in cluster.cancelled:
            return
        if seq > cluster.sent_seq:
            self._end_here(number, cluster, [seq])
            return
        cluster.cancelled[seq] = None
        if self.joined:
            self._effects.append(Send(CancelJobs(number, [seq])))

    def close(self, number: int) -> None:
        """Take no more jobs, cancel those that are left; `Closed` follows."""
        cluster = self.clusters.get(number)
        if cluster is None or cluster.closing:
            return
        cluster.closing = True
        cluster.patient_until = None
        if not self.joined:
            self._forget(number, cluster)
            return
        unsent = [seq for seq in cluster.unfinished if seq > cluster.sent_seq]
        self._end_here(number, cluster, unsent)
        self._effects.append(Send(CloseCluster(number)))

    # -- what the broker does ------------------------------------------------------------

    def join(self, now: float) -> None:
        """A session with the broker begins, in which it knows nothing of us."""
        self.joined = True
        for number, cluster in list(self.clusters.items()):
            if cluster.closing:  # there is nothing left that could be lost
                self._effects.append(Send(CloseCluster(number)))
                self._forget(number, cluster)
            else:
                self._reopen(number, cluster)

    def leave(self) -> None:
        """The session is over. Jobs wait for the next one, clusters that close are closed."""
        self.joined = False
        for number, cluster in list(self.clusters.items()):
            if cluster.closing:
                self._forget(number, cluster)

    def give_up(self, reason: str) -> None:
        """End everything, since this process can't go on; no job is left waiting for ever."""
        self.joined = False
        body = pack_result(b"", b"", b"", reason)
        for number, cluster in list(self.clusters.items()):
            self._end_here(number, cluster, list(cluster.unfinished), TERMINATED, body)
            self._forget(number, cluster)

    def receive(self, message: Body, now: float) -> None:
        """Handle one message of the broker. Raises `ProtocolError` for what it can't say."""
        handler = self.HANDLERS.get(type(message))
        if handler is None:
            raise ProtocolError(f"a client takes no {type(message).__name__}")
        number: int = message.cluster  # type: ignore[union-attr]
        cluster = self.clusters.get(number)
        if cluster is not None:
            handler(self, number, cluster, message)

    def tick(self, now: float) -> None:
        """Tell the user about clusters that have been without a node for too long."""
        if now < self._next_complaint:
            return
        self._next_complaint = float("inf")
        for cluster in self.clusters.values():
            if cluster.patient_until is None:
                continue
            if now >= cluster.patient_until:
                cluster.patient_until = None
                self._effects.append(Warned(_complaint(cluster)))
            else:
                self._next_complaint = min(self._next_complaint, cluster.patient_until)

    def deadline(self) -> float:
        """When `tick` next has something to do."""
        return self._next_complaint

    def take(self) -> list[Effect]:
        """Return what is to be done, in order, and forget it."""
        sendable, self._sendable = self._sendable, {}
        for number in sendable:
            cluster = self.clusters.get(number)
            if cluster is not None and self.joined:
                self._send_jobs(number, cluster)
        effects, self._effects = self._effects, []
        return effects

    # -- messages ------------------------------------------------------------------------

    def _on_opened(self, number: int, cluster: Cluster, message: ClusterOpened) -> None:
        cluster.credit = max(cluster.credit, message.credit)
        self._sendable[number] = None

    def _on_credit(self, number: int, cluster: Cluster, message: Credit) -> None:
        cluster.credit = max(cluster.credit, message.limit)
        self._sendable[number] = None

    def _on_results(self, number: int, cluster: Cluster, message: Results) -> None:
        if not {result.status for result in message.results} <= STATUSES:
            raise ProtocolError("a result says that a job ended as no job can end")
        ended = []
        for result in message.results:
            seq, status = result.seq, result.status
            job = cluster.unfinished.pop(seq, None)
            if job is not None:
                cluster.cancelled.pop(seq, None)
                if status == ABANDONED:
                    cluster.abandoned[seq] = job
            elif status == FINISHED and seq in cluster.abandoned:
                job = cluster.abandoned.pop(seq)
            else:
                continue  # a duplicate
            ended.append((job, result))
        if ended:
            self._effects.append(Ended(number, message.node, ended))

    def _on_running(self, number: int, cluster: Cluster, message: JobsRunning) -> None:
        unfinished = cluster.unfinished
        begun = [(unfinished[seq], start) for seq, start in message.jobs if seq in unfinished]
        if begun:
            self._effects.append(Begun(number, message.node, begun))

    def _on_node_ready(self, number: int, cluster: Cluster, message: NodeReady) -> None:
        cluster.nodes[message.node.id] = message.node
        cluster.patient_until = None
        cluster.troubles.clear()
        self._effects.append(NodeUp(number, message.node, message.cpus))

    def _on_node_gone(self, number: int, cluster: Cluster, message: NodeGone) -> None:
        node = cluster.nodes.pop(message.node, None)
        if node is None:
            return
        self._effects.append(NodeDown(number, node.id, message.reason))
        if not cluster.closing:
            name = cluster.opening.name
            text = f"cluster {name!r} has lost node {node.name} {node.address}: {message.reason}"
            self._effects.append(Warned(text))

    def _on_node_trouble(self, number: int, cluster: Cluster, message: NodeTrouble) -> None:
        troubles = cluster.troubles
        if troubles.get(message.address) == message.reason:
            return
        if message.address not in troubles and len(troubles) >= TROUBLES_MAX:
            return
        troubles[message.address] = message.reason
        text = (
            f"cluster {cluster.opening.name!r} can't use node {message.address}: "
            f"{message.reason}; still trying"
        )
        self._effects.append(Warned(text))

    def _on_closed(self, number: int, cluster: Cluster, message: ClusterClosed) -> None:
        self._forget(number, cluster)

    # -- parts ---------------------------------------------------------------------------

    def _send_jobs(self, number: int, cluster: Cluster) -> None:
        """Send what waits, as far as the broker has asked for it."""
        while cluster.waiting and cluster.sent < cluster.credit and not cluster.closing:
            batch = _next_batch(cluster, min(BATCH_JOBS, cluster.credit - cluster.sent))
            if batch:
                cluster.sent += len(batch)
                self._effects.append(Send(Submit(number, batch)))

    def _reopen(self, number: int, cluster: Cluster) -> None:
        """Say everything again. A broker that knows some of it all the same ignores that."""
        for node in cluster.nodes:
            self._effects.append(NodeDown(number, node, "the connection to the broker was lost"))
        cluster.nodes.clear()
        cluster.credit = cluster.sent = cluster.sent_seq = 0
        self._effects.append(Send(cluster.opening))
        if cluster.cancelled:
            self._effects.append(Send(CancelJobs(number, list(cluster.cancelled))))
            self._end_here(number, cluster, list(cluster.cancelled))
        cluster.waiting = deque(cluster.unfinished.values())

    def _end_here(
        self,
        number: int,
        cluster: Cluster,
        seqs: list[int],
        status: int = CANCELLED,
        body: bytes = b"",
    ) -> None:
        """End jobs that no node has, or none that we will ever hear of."""
        jobs = []
        for seq in seqs:
            cluster.cancelled.pop(seq, None)
            job = cluster.unfinished.pop(seq)
            jobs.append((job, JobResult(seq, 0, status, 0.0, 0.0, body)))
        if jobs:
            self._effects.append(Ended(number, 0, jobs))

    def _forget(self, number: int, cluster: Cluster) -> None:
        self._end_here(number, cluster, list(cluster.unfinished))
        del self.clusters[number]
        self._effects.append(Closed(number))

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        for cluster in self.clusters.values():
            assert cluster.sent <= cluster.credit
            assert not cluster.unfinished.keys() & cluster.abandoned.keys()
            assert cluster.cancelled.keys() <= cluster.unfinished.keys()
            assert list(cluster.unfinished) == sorted(cluster.unfinished)
            waiting = [job._seq for job in cluster.waiting if job._seq in cluster.unfinished]
            if not cluster.closing:
                assert waiting == [seq for seq in cluster.unfinished if seq > cluster.sent_seq]

    HANDLERS: ClassVar[dict[type, Callable[..., None]]] = {
        ClusterOpened: _on_opened,
        Credit: _on_credit,
        Results: _on_results,
        JobsRunning: _on_running,
        NodeReady: _on_node_ready,
        NodeGone: _on_node_gone,
        NodeTrouble: _on_node_trouble,
        ClusterClosed: _on_closed,
    }


def payload_bytes(spec: JobSpec | JobResult) -> int:
    """How many bytes of payload a job or a result carries."""
    size = len(spec.payload)
    return size + sum([part.size for part in spec.parts]) if spec.parts else size


def _next_batch(cluster: Cluster, limit: int) -> list[JobSpec]:
    """Take jobs off the queue, until there are enough of them for one message."""
    batch: list[JobSpec] = []
    size = 0
    while cluster.waiting and len(batch) < limit and size < BATCH_BYTES:
        job = cluster.waiting.popleft()
        if job._seq in cluster.unfinished:  # else it was cancelled meanwhile
            assert job._spec is not None
            cluster.sent_seq = job._seq
            batch.append(job._spec)
            size += payload_bytes(job._spec)
    return batch


def _complaint(cluster: Cluster) -> str:
    """Say which nodes a cluster waits for, and why."""
    text = f"cluster {cluster.opening.name!r} has no node to run jobs on"
    if cluster.troubles:
        reasons = "; ".join(f"{address}: {why}" for address, why in cluster.troubles.items())
        return f"{text} ({reasons}); still trying"
    wanted = ", ".join(_describe(spec) for spec in cluster.opening.nodes)
    return f"{text}: no answer from {wanted}; still trying"


def _describe(spec: NodeSpec) -> str:
    return f"{spec.pattern}:{spec.port}" if spec.port else spec.pattern
