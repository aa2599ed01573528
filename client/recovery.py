"""The state machine of a recovery: it stands in for the broker of a program that was killed.

It is given what nodes say and the time, and returns what to tell them; it does no I/O and reads
no clock. Nodes keep what they hold, and are released when all jobs have ended. A job ends with
its result, or when no node can have it any more. Only this file changes the state.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple, TypeAlias

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FILE,
    TERMINATED,
    BlobPiece,
    BlobPieces,
    Body,
    Done,
    FilePut,
    Heard,
    Holding,
    Identity,
    Inventory,
    JobResult,
    Kill,
    NeedBlobs,
    Prepared,
    Pulse,
    Records,
    RecordsHeard,
    Release,
    Released,
    Returned,
    Started,
)
from dispy.protocol.payload import pack_result

PATIENCE_S = 5.0  # with a node that can't be reached
NOBODY_READS = "the program that ran this job was killed: nobody takes the file"
NO_FILE = "the program that has the file was killed"
NOT_SENT = "it had not been sent to a node when its program ended"


class Send(NamedTuple):
    """Effect: send a message to a node."""

    peer: str
    message: Body


class Goodbye(NamedTuple):
    """Effect: end the session with a node, which is free then."""

    peer: str
    reason: str


class Received(NamedTuple):
    """Effect: keep a result, which its node will forget."""

    computation: int
    host: str
    result: JobResult


Effect: TypeAlias = Send | Goodbye | Received


@dataclass(eq=False, slots=True)
class Job:
    """A job that had not ended when its program did."""

    seq: int
    begun_at: str = ""  # the address of the node where it was running
    holders: dict[str, int] = field(default_factory=dict)  # peers that have it: the attempt
    loss: str = ""  # what became of a node that had it
    result: JobResult | None = None
    host: str = ""

    @property
    def is_told(self) -> bool:
        """Whether a node has told its end; else that was only concluded."""
        return self.result is not None and self.result.attempt > 0

    def revive(self) -> None:
        """A node that has it was only away."""
        if not self.is_told:
            self.result = None


@dataclass(eq=False)
class Cluster:
    """What is known of a cluster, under the broker's number."""

    number: int
    jobs: dict[int, Job]  # that nodes may have or have had
    unsent: set[int]  # jobs that waited in the program: there may be very many
    addresses: set[str]  # of its nodes
    has_ended: Callable[[int], bool]  # whether the program knew the end of a job


@dataclass(eq=False)
class Node:
    """A node as the file names it; `None` in ``silent_since``: it is here."""

    address: str
    silent_since: float | None
    trouble: str = "no answer"
    counted: bool = False  # it has said what it holds
    given_up: bool = False
    taken: bool = False  # it has worked for another broker since, and has only kept results


@dataclass(eq=False)
class Peer:
    """A node that has registered."""

    instance: str
    name: str
    address: str
    node: Node | None  # None: the file doesn't know it
    online: bool = True
    counted: bool = False  # it has said what it holds
    computations: set[int] = field(default_factory=set)  # that are there, of whatever file


class Recovery:
    """Collects the ends of all jobs.

    ``clusters`` are those of the file. ``others`` are the computations of the program's other
    files, which are left alone. ``check`` asserts the invariants; tests call it after every
    event.
    """

    def __init__(
        self,
        clusters: Iterable[Cluster],
        others: Set[int],
        now: float,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.clusters = {cluster.number: cluster for cluster in clusters}
        addresses = {each for cluster in self.clusters.values() for each in cluster.addresses}
        self.nodes = {address: Node(address, now) for address in sorted(addresses)}
        self.peers: dict[str, Peer] = {}
        self._others = others
        self._patience_s = patience_s
        self._killing = False
        self._releasing = False
        self._effects: list[Effect] = []

    @property
    def heard(self) -> bool:
        """Whether it is known of each node what it holds, or that it can't be reached."""
        return all(node.counted or node.given_up for node in self.nodes.values())

    @property
    def settled(self) -> bool:
        """Whether all jobs have ended, and no node is waited for."""
        return self.heard and all(job.result is not None for job in self._jobs())

    @property
    def released(self) -> bool:
        """Whether nothing of the clusters is left at any node that can be reached."""
        ours = self._is_ours
        return not any(
            peer.online and any(map(ours, peer.computations)) for peer in self.peers.values()
        )

    @property
    def unreachable(self) -> dict[str, str]:
        """The nodes that were given up, and why."""
        return {node.address: node.trouble for node in self.nodes.values() if node.given_up}

    # -- events --------------------------------------------------------------------------

    def joined(self, instance: str, identity: Identity, address: str) -> None:
        """A node has registered; it will say what it holds."""
        known = {address, identity.address, *identity.addresses} & self.nodes.keys()
        node = self.nodes[min(known)] if known else None
        where = address or identity.address
        self.peers[instance] = Peer(instance, identity.name, where, node)
        if node is not None:
            node.silent_since, node.given_up, node.taken = None, False, False

    def back(self, instance: str) -> None:
        """A node that was away can be reached again, and nothing was lost."""
        peer = self.peers.get(instance)
        if peer is None:
            return
        peer.online = True
        if peer.node is not None:
            peer.node.silent_since, peer.node.given_up = None, False
            peer.node.counted = peer.counted
        for job in self._jobs():
            if instance in job.holders:
                job.revive()

    def away(self, instance: str, reason: str, gone: bool, now: float) -> None:
        """A node can't be reached; ``gone``: its process has ended."""
        peer = self.peers.get(instance)
        if peer is None:
            return
        if gone:
            self.left(instance, "its process is gone")
            return
        peer.online = False
        if peer.node is not None and peer.node.silent_since is None:
            peer.node.silent_since, peer.node.trouble = now, reason

    def left(self, instance: str, reason: str) -> None:
        """A node has ended the session: what it had is lost."""
        peer = self.peers.pop(instance, None)
        if peer is None:
            return
        why = f"node {peer.name} {peer.address} was lost: {reason or 'it was stopped'}"
        for job in self._jobs():
            if job.holders.pop(instance, None) is not None:
                job.loss = why
        if peer.node is not None and not peer.node.taken:
            self._give_up(peer.node, reason or "it was stopped")
        self._judge()

    def unreachable_at(self, address: str, reason: str) -> None:
        """An address doesn't lead to a node at present."""
        node = self.nodes.get(address)
        if node is not None and node.silent_since is not None:
            node.trouble = reason

    def tick(self, now: float) -> None:
        """Give up nodes that have not been reached for too long."""
        for node in self.nodes.values():
            since = node.silent_since
            if since is not None and not node.given_up and now >= since + self._patience_s:
                self._give_up(node, node.trouble)
        self._judge()

    def deadline(self) -> float:
        """When `tick` next has something to do."""
        ends = [
            node.silent_since + self._patience_s
            for node in self.nodes.values()
            if node.silent_since is not None and not node.given_up
        ]
        return min(ends, default=float("inf"))

    def receive(self, instance: str, message: Body) -> None:
        """Handle a message of a node. Raises `ProtocolError` for what no node says."""
        handler = self.HANDLERS.get(type(message))
        if handler is None:
            raise ProtocolError(f"a recovery takes no {type(message).__name__}")
        peer = self.peers.get(instance)
        if peer is not None:
            handler(self, peer, message)

    def flush(self) -> list[Effect]:
        """Return what is to be done since the last call."""
        effects, self._effects = self._effects, []
        return effects

    # -- what the user wants -------------------------------------------------------------

    def give_up_unreachable(self) -> None:
        """Wait for no node any more that can't be reached."""
        for node in self.nodes.values():
            if node.silent_since is not None and not node.given_up:
                self._give_up(node, node.trouble)
        self._judge()

    def kill(self) -> None:
        """End all jobs that still run; each of them still ends with a result."""
        self._killing = True
        for cluster in self.clusters.values():
            for peer in self.peers.values():
                self._kill(cluster, peer)

    def cut_short(self) -> None:
        """End what is left: it didn't heed being killed, and the release will end it."""
        for job in self._jobs():
            if job.result is None:
                self._end(job, TERMINATED, "ended, since its node was released")

    def release(self) -> None:
        """Have the nodes remove what is there; see `released`."""
        self._releasing = True
        for peer in self.peers.values():
            for computation in sorted(filter(self._is_ours, peer.computations)):
                self._send(peer, Release(computation))

    def farewell(self) -> None:
        """Let nodes go that have nothing left of the program; the others keep it."""
        for peer in self.peers.values():
            if all(map(self._is_ours, peer.computations)):
                self._effects.append(Goodbye(peer.instance, "its jobs have been recovered"))

    def ends(self, number: int) -> list[Job]:
        """Return the jobs of a cluster that have ended, in the order of their submission."""
        cluster = self.clusters[number]
        jobs = [job for job in cluster.jobs.values() if job.result is not None]
        if self.heard:
            for seq in cluster.unsent:
                jobs.append(Job(seq))
                self._end(jobs[-1], CANCELLED, NOT_SENT)
        return sorted(jobs, key=lambda job: job.seq)

    def take_kept(self, computation: int, host: str, result: JobResult) -> None:
        """Take a result that an earlier recovery has kept."""
        cluster = self.clusters.get(computation)
        job = self._job(cluster, result.seq) if cluster is not None else None
        if job is not None:
            job.result, job.host = result, host

    # -- messages ------------------------------------------------------------------------

    def _on_holding(self, peer: Peer, message: Holding) -> None:
        """All results that the node has kept came before this."""
        peer.computations = set(message.computations)
        held = set()
        for computation, seq, attempt in message.jobs:
            job = self._job(self._cluster(computation), seq)
            if job is not None:
                job.holders[peer.instance] = attempt
                job.revive()
                held.add(job)
        for job in self._jobs():
            if job not in held:
                job.holders.pop(peer.instance, None)
        self._send(peer, Inventory(message.jobs))
        peer.counted = True
        if peer.node is not None:
            peer.node.counted = True
        if self._killing:
            for cluster in self.clusters.values():
                self._kill(cluster, peer)
        if self._releasing:
            self.release()
        self._judge()

    def _on_done(self, peer: Peer, message: Done) -> None:
        host = peer.address.rpartition(":")[0].strip("[]") or peer.name
        cluster = self._cluster(message.computation)
        for result in message.results:
            if cluster is None:  # of a sibling
                self._effects.append(Received(message.computation, host, result))
                continue
            job = self._job(cluster, result.seq)
            if job is None or not _counts(job, peer, result):
                continue
            job.holders.pop(peer.instance, None)
            job.result, job.host = result, host
            self._effects.append(Received(message.computation, host, result))

    def _on_returned(self, peer: Peer, message: Returned) -> None:
        for seq, _ in message.jobs:
            self._never_begun(peer, message.computation, seq, "its node was stopped")

    def _on_prepared(self, peer: Peer, message: Prepared) -> None:
        """A node that can't run the jobs any more has told how all ended that had begun."""
        cluster = self.clusters.get(message.computation)
        if cluster is None or not message.error:
            return
        for job in list(cluster.jobs.values()):
            if peer.instance in job.holders:
                self._never_begun(peer, message.computation, job.seq, message.error)

    def _on_started(self, peer: Peer, message: Started) -> None:
        cluster = self.clusters.get(message.computation)
        for seq, _, _ in message.jobs:
            job = cluster.jobs.get(seq) if cluster is not None else None
            if job is not None:
                job.begun_at = peer.address

    def _on_released(self, peer: Peer, message: Released) -> None:
        """Unasked, it means that the node has worked for another since; it has told all it kept."""
        peer.computations.discard(message.computation)
        if not peer.counted:
            peer.counted = True
            if peer.node is not None:
                peer.node.counted = peer.node.taken = True
                peer.node.trouble = "it gave up its jobs to work for another"
            self._judge()

    def _on_records(self, peer: Peer, message: Records) -> None:
        """Jobs wait until what they say has been heard."""
        heard = [
            Heard(each.seq, each.attempt, each.number, NOBODY_READS if each.kind == FILE else "")
            for each in message.records
        ]
        self._send(peer, RecordsHeard(message.cluster, heard))

    def _on_need_blobs(self, peer: Peer, message: NeedBlobs) -> None:
        pieces = [
            BlobPiece(each.digest, each.offset, b"", error=NO_FILE) for each in message.ranges
        ]
        self._send(peer, BlobPieces(message.cluster, message.node, pieces))

    def _ignore(self, peer: Peer, message: Body) -> None:
        """Nobody is left who wants to know."""

    # -- parts ---------------------------------------------------------------------------

    def _jobs(self) -> Iterable[Job]:
        for cluster in self.clusters.values():
            yield from cluster.jobs.values()

    def _is_ours(self, computation: int) -> bool:
        return computation not in self._others

    def _cluster(self, computation: int) -> Cluster | None:
        """Return a cluster; None if it's a sibling's. The file may be cut off before it."""
        if computation not in self.clusters and self._is_ours(computation):
            cluster = Cluster(computation, {}, set(), set(), lambda seq: False)
            self.clusters[computation] = cluster
        return self.clusters.get(computation)

    @staticmethod
    def _job(cluster: Cluster | None, seq: int) -> Job | None:
        """Return a job that isn't known to have ended. The file may be cut off before it."""
        if cluster is None or (seq not in cluster.jobs and cluster.has_ended(seq)):
            return None
        cluster.unsent.discard(seq)
        return cluster.jobs.setdefault(seq, Job(seq))

    def _kill(self, cluster: Cluster, peer: Peer) -> None:
        jobs = [
            (job.seq, job.holders[peer.instance])
            for job in cluster.jobs.values()
            if peer.instance in job.holders and job.result is None
        ]
        if jobs:
            self._send(peer, Kill(cluster.number, jobs))

    def _give_up(self, node: Node, reason: str) -> None:
        node.given_up, node.counted, node.trouble = True, False, reason
        if node.silent_since is None:
            node.silent_since = 0.0

    def _never_begun(self, peer: Peer, computation: int, seq: int, reason: str) -> None:
        job = self._job(self._cluster(computation), seq)
        if job is not None and job.holders.pop(peer.instance, None) is not None:
            job.loss = ""
            if job.result is None and not job.holders:
                self._end(job, CANCELLED, f"it had not begun: {reason}")

    def _judge(self) -> None:
        """End the jobs that no node has, once all nodes have been heard or given up."""
        if not self.heard:
            return
        present = {peer.instance for peer in self.peers.values() if not _is_given_up(peer)}
        for cluster in self.clusters.values():
            for job in cluster.jobs.values():
                if job.result is None and not job.holders.keys() & present:
                    self._end_lost(cluster, job)

    def _end_lost(self, cluster: Cluster, job: Job) -> None:
        lost = {
            address: self.nodes[address].trouble
            for address in sorted(cluster.addresses)
            if self.nodes[address].given_up or self.nodes[address].taken
        }
        troubles = "; ".join(f"{address}: {trouble}" for address, trouble in lost.items())
        if job.loss:
            self._end(job, ABANDONED, job.loss)
        elif job.begun_at and job.begun_at not in lost:
            reason = f"node {job.begun_at} doesn't have it any more: was it started anew?"
            self._end(job, ABANDONED, reason)
        elif job.begun_at:
            reason = f"its node is lost ({job.begun_at}: {lost[job.begun_at]})"
            self._end(job, ABANDONED, reason)
        elif lost:
            reason = f"a node that may have had it is lost ({troubles})"
            self._end(job, ABANDONED, reason)
        else:
            self._end(job, CANCELLED, NOT_SENT)

    @staticmethod
    def _end(job: Job, status: int, reason: str) -> None:
        body = pack_result(b"", b"", b"", reason)
        job.result = JobResult(job.seq, 0, status, 0.0, 0.0, body)

    def _send(self, peer: Peer, message: Body) -> None:
        self._effects.append(Send(peer.instance, message))

    def check(self) -> None:
        """Assert what must hold between any two events."""
        for cluster in self.clusters.values():
            assert cluster.addresses <= self.nodes.keys()
            assert all(not cluster.has_ended(seq) for seq in cluster.jobs.keys() | cluster.unsent)
            assert not cluster.jobs.keys() & cluster.unsent
        for job in self._jobs():
            assert job.holders.keys() <= self.peers.keys()
        for node in self.nodes.values():
            assert not (node.counted and node.given_up)

    HANDLERS: ClassVar[dict[type[Any], Callable[..., None]]] = {
        Holding: _on_holding,
        Done: _on_done,
        Returned: _on_returned,
        Prepared: _on_prepared,
        Started: _on_started,
        Released: _on_released,
        Records: _on_records,
        NeedBlobs: _on_need_blobs,
        FilePut: _ignore,
        Pulse: _ignore,
    }


def _counts(job: Job, peer: Peer, result: JobResult) -> bool:
    """Whether a result is the job's end, and not of an attempt that was given up."""
    if job.is_told:
        return False
    others = [attempt for instance, attempt in job.holders.items() if instance != peer.instance]
    return max(others, default=0) <= result.attempt


def _is_given_up(peer: Peer) -> bool:
    return peer.node is not None and peer.node.given_up
