"""Clusters at a shared broker that are taken over: what has become of their jobs.

The client that opened them is dead, or runs elsewhere. Pure: each call is given one event;
`take` returns the messages to be sent. Nothing is said to have been heard before `hear`, so
that the broker keeps what nobody has been given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FILE,
    FINISHED,
    TERMINATED,
    Attach,
    Attached,
    BlobPiece,
    BlobPieces,
    Body,
    CancelJobs,
    CloseCluster,
    ClusterClosed,
    ClusterLost,
    Heard,
    JobResult,
    NeedBlobs,
    NodeReady,
    Records,
    RecordsHeard,
    Results,
    ResultsHeard,
)
from dispy.protocol.payload import pack_result

RETRY_S = 0.5  # a client that was killed a moment ago may still count as being there
RETRIES_S = 3.0
NOBODY_READS = "the program that the file was for has ended"
NO_FILE = "the program that had the file has ended"
NOT_THERE = "the broker hadn't got it when its program ended"
NOT_HEEDED = "it hadn't ended a while after it was told to"


@dataclass(eq=False)
class Cluster:
    """What is known of a cluster that is to be taken over."""

    wanted: Attach
    said: Attached | None = None  # it is ours
    lost: str = ""  # why it isn't
    pending: set[int] = field(default_factory=set)  # jobs that have not ended
    unheard: int = 0  # ends that came before it was ours, and are still to be told
    ends: dict[int, tuple[JobResult, int]] = field(default_factory=dict)  # by seq, with the node
    records: dict[int, list[int]] = field(default_factory=dict)  # to be heard, with their jobs
    hosts: dict[int, str] = field(default_factory=dict)  # of nodes, by id
    closed: bool = False

    @property
    def gathered(self) -> bool:
        """Whether all that had ended before has come."""
        return bool(self.lost) or (self.said is not None and self.unheard <= 0)

    @property
    def settled(self) -> bool:
        """Whether no job of it will come to anything more."""
        return bool(self.lost) or (self.gathered and not self.pending)


class Takeover:
    """Clusters that are taken over, by the numbers that they get here."""

    def __init__(self, wanted: Iterable[Attach]) -> None:
        self.clusters = {each.cluster: Cluster(each) for each in wanted}
        self.joined = False
        self._messages: list[Body] = []
        self._retry_at = float("inf")
        self._retry_until = float("inf")

    # -- what the shell waits for -----------------------------------------------------------

    @property
    def gathered(self) -> bool:
        """Whether all that had ended before has come."""
        return all(cluster.gathered for cluster in self.clusters.values())

    @property
    def settled(self) -> bool:
        """Whether all jobs have ended."""
        return all(cluster.settled for cluster in self.clusters.values())

    @property
    def closed(self) -> bool:
        """Whether the broker has forgotten all clusters."""
        return all(cluster.closed or cluster.lost for cluster in self.clusters.values())

    # -- events ---------------------------------------------------------------------------

    def join(self, now: float) -> None:
        """A session with the broker begins: ask for all clusters, also once more."""
        self.joined = True
        self._retry_until = now + RETRIES_S
        for cluster in self.clusters.values():
            if not cluster.closed:
                self._messages.append(cluster.wanted)

    def receive(self, message: Body, now: float) -> None:
        """Handle a message of the broker; what isn't about results is nobody's business now."""
        handler = self.HANDLERS.get(type(message))
        cluster = self.clusters.get(getattr(message, "cluster", 0))
        if handler is not None and cluster is not None:
            handler(self, cluster, message, now)

    def tick(self, now: float) -> None:
        """Ask once more for clusters that were refused."""
        if now >= self._retry_at:
            self._retry_at = float("inf")
            for cluster in self.clusters.values():
                if cluster.said is None and not cluster.lost:
                    self._messages.append(cluster.wanted)

    def deadline(self) -> float:
        """When `tick` next has something to do."""
        return self._retry_at

    def take(self) -> list[Body]:
        """Return what is to be sent, and forget it."""
        messages, self._messages = self._messages, []
        return messages

    # -- what the shell wants -------------------------------------------------------------

    def kill(self) -> None:
        """Have the jobs that are left ended."""
        for number, cluster in self.clusters.items():
            if cluster.pending and not cluster.lost:
                self._messages.append(CancelJobs(number, sorted(cluster.pending)))

    def cut_short(self) -> None:
        """End what is left: it didn't heed being ended, and closing the cluster will do it."""
        for cluster in self.clusters.values():
            for seq in cluster.pending:
                cluster.ends[seq] = _end(seq, TERMINATED, NOT_HEEDED), 0
            cluster.pending.clear()

    def miss(self, number: int, seqs: Iterable[int]) -> None:
        """End those of these jobs that the broker doesn't have; it has said all."""
        cluster = self.clusters[number]
        if cluster.said is not None and cluster.gathered:
            for seq in seqs:
                if seq not in cluster.ends and seq not in cluster.pending:
                    cluster.ends[seq] = _end(seq, CANCELLED, NOT_THERE), 0

    def news(self, number: int, is_known: Callable[[int], bool]) -> Iterator[tuple[JobResult, str]]:
        """Yield the ends of a cluster's jobs, in order, each with its host.

        Those that the dead program knew are left out: only the broker hadn't heard that it did.
        """
        cluster = self.clusters[number]
        for seq, (result, node) in sorted(cluster.ends.items()):
            if not is_known(seq):
                yield result, cluster.hosts.get(node, "")

    def hear(self, number: int, kept: set[int]) -> None:
        """All ends have been handed over but those of ``kept``, which stay at the broker."""
        cluster = self.clusters[number]
        heard = [record for record, seqs in cluster.records.items() if not kept & set(seqs)]
        for record in heard:
            del cluster.records[record]
        if heard and not cluster.lost:
            self._messages.append(ResultsHeard(number, heard))

    def close(self) -> None:
        """Have the broker forget the clusters; see `closed`."""
        for number, cluster in self.clusters.items():
            if not cluster.lost:
                self._messages.append(CloseCluster(number))

    # -- messages -------------------------------------------------------------------------

    def _on_attached(self, cluster: Cluster, message: Attached, now: float) -> None:
        cluster.said = message
        ranges = (range(first, last + 1) for first, last in message.pending)
        cluster.pending = {seq for each in ranges for seq in each if seq not in cluster.ends}
        cluster.unheard = message.unheard
        cluster.records.clear()  # all of them come again

    def _on_lost(self, cluster: Cluster, message: ClusterLost, now: float) -> None:
        if cluster.said is None and now < self._retry_until:
            self._retry_at = min(self._retry_at, now + RETRY_S)
        else:
            cluster.lost = message.reason

    def _on_results(self, cluster: Cluster, message: Results, now: float) -> None:
        if message.record in cluster.records:
            return  # said twice
        if message.record:
            cluster.records[message.record] = [result.seq for result in message.results]
        for result in message.results:
            if result.seq in cluster.pending:
                cluster.pending.discard(result.seq)
            else:
                cluster.unheard -= 1
            before = cluster.ends.get(result.seq)
            if before is None or (before[0].status == ABANDONED and result.status == FINISHED):
                cluster.ends[result.seq] = result, message.node

    def _on_node(self, cluster: Cluster, message: NodeReady, now: float) -> None:
        node = message.node
        cluster.hosts[node.id] = node.address.rpartition(":")[0].strip("[]") or node.name

    def _on_closed(self, cluster: Cluster, message: ClusterClosed, now: float) -> None:
        cluster.closed = True

    def _on_records(self, cluster: Cluster, message: Records, now: float) -> None:
        """Jobs wait until what they say has been heard."""
        heard = [
            Heard(each.seq, each.attempt, each.number, NOBODY_READS if each.kind == FILE else "")
            for each in message.records
        ]
        self._messages.append(RecordsHeard(message.cluster, heard))

    def _on_need(self, cluster: Cluster, message: NeedBlobs, now: float) -> None:
        ranges = message.ranges
        pieces = [BlobPiece(each.digest, each.offset, b"", error=NO_FILE) for each in ranges]
        self._messages.append(BlobPieces(message.cluster, message.node, pieces))

    HANDLERS: ClassVar[dict[type[Any], Callable[..., None]]] = {
        Attached: _on_attached,
        ClusterClosed: _on_closed,
        ClusterLost: _on_lost,
        NeedBlobs: _on_need,
        NodeReady: _on_node,
        Records: _on_records,
        Results: _on_results,
    }


def _end(seq: int, status: int, reason: str) -> JobResult:
    return JobResult(seq, 0, status, 0.0, 0.0, pack_result(b"", b"", b"", reason))
