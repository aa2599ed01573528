"""The client's state machine: which jobs wait here, which the broker has, which have ended.

It does no I/O and reads no clock: each call is given one event and, where it matters, the
time, and changes the state; `take` returns what is to be done. Only this file changes the
state. It decides when a job has ended; what the job then looks like is `ledger`'s subject.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import msgspec

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    CLOSE,
    DEALLOCATE,
    FILE,
    FINISHED,
    OUTPUT,
    PROVISIONAL,
    RESETUP,
    TERMINATED,
    Allocate,
    Answer,
    BlobPiece,
    BlobPieces,
    Body,
    CancelJobs,
    CloseCluster,
    ClusterClosed,
    ClusterOpened,
    Code,
    Credit,
    Define,
    Explain,
    FollowJobs,
    Heard,
    JobOptions,
    JobRecord,
    JobResult,
    JobSpec,
    JobsRequeued,
    JobsRunning,
    NeedBlobs,
    NodeGone,
    NodeInfo,
    NodeOffer,
    NodeReady,
    NodeRequest,
    NodeSpec,
    NodeTrouble,
    NodeVitals,
    OpenCluster,
    Records,
    RecordsHeard,
    Results,
    SendFile,
    Submit,
)
from dispy.protocol.payload import pack_result

from .effects import (
    Answered,
    Begun,
    Closed,
    Effect,
    Ended,
    Known,
    NodeAlive,
    NodeDown,
    NodeUp,
    Offered,
    Requeued,
    Send,
    Sending,
    Silent,
    Told,
    Wanted,
    Warned,
)
from .job import DispyJob
from .line import Line
from .reports import Report

BATCH_JOBS = 500  # in one message, so that the broker's other clients get their turn
BATCH_BYTES = 1 << 20  # of payload in one message, unless a single job has more
PATIENCE_S = 3.0  # without any node, before the user is told
ENDED_MAX = 1_000  # jobs that have ended and are still in line, unless as many others are
TROUBLES_MAX = 100  # of one cluster that are remembered, so that they are told only once

STATUSES = {CANCELLED, TERMINATED, ABANDONED, FINISHED}
KINDS = {PROVISIONAL, FILE, OUTPUT}
LEAVING = {CLOSE, DEALLOCATE, RESETUP}  # actions after which a node is not lost but wanted gone


@dataclass(eq=False)
class Cluster:
    """What the core knows of one cluster; ``unfinished`` is the fact, the rest follows it.

    `recording` looks at ``unfinished`` and ``away``, which are never replaced by others.
    """

    opening: OpenCluster  # with all code that has been defined
    patient_until: float | None  # when to complain that there is no node
    unfinished: dict[int, DispyJob] = field(default_factory=dict)  # in order of submission
    abandoned: dict[int, DispyJob] = field(default_factory=dict)  # may still finish
    waiting: Line = field(default_factory=Line)  # not sent; some have ended here
    away: set[int] = field(default_factory=set)  # sent; as many as the broker has asked for
    cancelled: dict[int, None] = field(default_factory=dict)  # sent, and to be cancelled
    reports: dict[int, Report] = field(default_factory=dict)  # of jobs that say something
    heard: list[Heard] = field(default_factory=list)  # to be said with the next message
    # Requests without an answer; for those about jobs, what is known of the job here.
    asked: dict[int, str | None] = field(default_factory=dict)
    questions: list[NodeRequest | SendFile] = field(default_factory=list)  # not asked so far
    nodes: dict[int, NodeInfo] = field(default_factory=dict)
    met: bool = False  # some node has been ready
    leaving: set[int] = field(default_factory=set)  # nodes that the user has sent away
    troubles: dict[str, str] = field(default_factory=dict)  # address to reason
    sent: int = 0  # how many jobs, in this session with the broker
    credit: int = 0  # how many may be sent
    closing: bool = False

    @property
    def name(self) -> str:
        """The name of the computation."""
        return self.opening.computation.name


class Core:
    """All clusters of this process at one broker."""

    def __init__(self) -> None:
        self.clusters: dict[int, Cluster] = {}
        self.joined = False  # there is a session with the broker
        self._effects: list[Effect] = []
        self._sendable: dict[int, None] = {}  # clusters that may have something to send
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
        cluster.unfinished[job._seq] = job
        cluster.waiting.append(job)
        self._sendable[number] = None

    def cancel(self, number: int, seq: int) -> None:
        """End a job as soon as possible; one that has ended stays as it is."""
        cluster = self.clusters.get(number)
        if cluster is None or seq not in cluster.unfinished or seq in cluster.cancelled:
            return
        if seq not in cluster.away:
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
        unsent = [seq for seq in cluster.unfinished if seq not in cluster.away]
        self._end_here(number, cluster, unsent)
        self._effects.append(Send(CloseCluster(number)))

    def define(self, number: int, layers: list[Code]) -> None:
        """Make code known to nodes that the jobs to come need."""
        cluster = self.clusters.get(number)
        if cluster is None or cluster.closing:
            return
        spec = cluster.opening.computation
        spec = msgspec.structs.replace(spec, layers=[*spec.layers, *layers])
        cluster.opening = msgspec.structs.replace(cluster.opening, computation=spec)
        if self.joined:
            self._effects.append(Send(Define(number, layers)))

    def follow(self, number: int, seq: int) -> None:
        """Have a job tell what it prints, from now on."""
        cluster = self.clusters.get(number)
        job = None if cluster is None else cluster.unfinished.get(seq)
        if cluster is None or job is None or job._spec is None:
            return
        if job._spec.options is None:
            job._spec.options = JobOptions()
        job._spec.options.follow = True  # wherever it is sent from now on
        if seq in cluster.away and self.joined:
            self._effects.append(Send(FollowJobs(number, [seq])))

    def hear(self, number: int, seq: int, attempt: int, count: int, error: str = "") -> None:
        """A record has been dealt with; tell the job, so that it may go on."""
        cluster = self.clusters.get(number)
        report = None if cluster is None else cluster.reports.get(seq)
        if cluster is None or report is None or report.attempt != attempt:
            return
        heard = [Heard(seq, attempt, up_to, why) for up_to, why in report.deal(count, error)]
        cluster.heard += heard
        self._sendable[number] = None

    def send_pieces(self, number: int, node: int, pieces: list[BlobPiece]) -> None:
        """Send pieces of blobs that a node needs."""
        if self.joined and number in self.clusters:
            self._effects.append(Send(BlobPieces(number, node, pieces)))

    def allocate(self, message: Allocate, address: str) -> None:
        """Use so much of a node that was offered."""
        cluster = self.clusters.get(message.cluster)
        if cluster is None or cluster.closing or not self.joined:
            return  # a new session comes with new offers
        if not message.cpus and len(cluster.troubles) < TROUBLES_MAX:
            cluster.troubles[address] = "allocate() returned 0 CPUs for it"
        self._effects.append(Send(message))

    def request(self, message: NodeRequest | SendFile) -> None:
        """Ask the broker for something; `Answered` follows."""
        cluster = self.clusters.get(message.cluster)
        if cluster is None:
            return  # `Closed` was the answer to all requests, and nobody is left to be told
        if cluster.closing:
            reason = "the cluster is closed"
            self._effects.append(Answered(message.cluster, message.request, -1, reason))
        elif self.joined:
            self._ask(cluster, message)
        else:
            cluster.questions.append(message)  # whoever asks doesn't wait for ever

    def explain(self, number: int, request: int, seq: int) -> None:
        """Say what a job waits for; `Answered` follows."""
        cluster = self.clusters.get(number)
        if cluster is None:
            return  # as in `request`
        job = cluster.unfinished.get(seq)
        if job is None:
            self._effects.append(Answered(number, request, 0, "it has ended"))
        elif not self.joined:
            text = f"it waits for the connection to the broker ({_reasons(cluster)})"
            self._effects.append(Answered(number, request, 0, text))
        else:
            cluster.asked[request] = "" if seq in cluster.away else _why_not_sent(cluster, job)
            self._effects.append(Send(Explain(number, request, seq)))

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
            else:
                self._answer_all(number, cluster, "the connection to the broker was lost")

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
                self._send_heard(number, cluster)
                self._send_jobs(number, cluster)
        effects, self._effects = self._effects, []
        return effects

    # -- messages ------------------------------------------------------------------------

    def _on_opened(self, number: int, cluster: Cluster, message: ClusterOpened) -> None:
        cluster.credit = max(cluster.credit, message.credit)
        self._sendable[number] = None
        self._effects.append(Known(number, message.computation))

    def _on_credit(self, number: int, cluster: Cluster, message: Credit) -> None:
        cluster.credit = max(cluster.credit, message.limit)
        self._sendable[number] = None

    def _on_results(self, number: int, cluster: Cluster, message: Results) -> None:
        if not {result.status for result in message.results} <= STATUSES:
            raise ProtocolError("a result says that a job ended as no job can end")
        ended, told = [], []
        for result in message.results:
            seq, status = result.seq, result.status
            job = cluster.unfinished.pop(seq, None)
            if job is not None:
                cluster.away.discard(seq)
                cluster.cancelled.pop(seq, None)
                if seq in cluster.reports:
                    del cluster.reports[seq]
                    told.append(seq)
                if status == ABANDONED:
                    cluster.abandoned[seq] = job
            elif status == FINISHED and seq in cluster.abandoned:
                job = cluster.abandoned.pop(seq)
            else:
                continue  # a duplicate
            ended.append((job, result))
        if ended:
            self._effects.append(Ended(number, message.node, ended))
        if told:
            self._effects.append(Silent(number, told))

    def _on_running(self, number: int, cluster: Cluster, message: JobsRunning) -> None:
        unfinished = cluster.unfinished
        begun = [(unfinished[seq], start) for seq, start in message.jobs if seq in unfinished]
        if begun:
            self._effects.append(Begun(number, message.node, begun))

    def _on_requeued(self, number: int, cluster: Cluster, message: JobsRequeued) -> None:
        seqs = [seq for seq in message.jobs if seq in cluster.unfinished]
        told = [seq for seq in seqs if seq in cluster.reports]
        if told:
            self._effects.append(Silent(number, told))
        if seqs:
            self._effects.append(Requeued(number, [cluster.unfinished[seq] for seq in seqs]))

    def _on_records(self, number: int, cluster: Cluster, message: Records) -> None:
        if not {record.kind for record in message.records} <= KINDS:
            raise ProtocolError("a job says something of a kind that there isn't")
        fresh = []
        for record in message.records:
            job = cluster.unfinished.get(record.seq)
            if job is not None and self._arrives(number, cluster, record):
                fresh.append((job, record))
        if fresh:
            self._effects.append(Told(number, message.node, fresh))

    def _on_need(self, number: int, cluster: Cluster, message: NeedBlobs) -> None:
        self._effects.append(Wanted(number, message.node, message.ranges))

    def _on_offer(self, number: int, cluster: Cluster, message: NodeOffer) -> None:
        if not cluster.closing:
            self._effects.append(Offered(number, message.node, message.vitals))

    def _on_vitals(self, number: int, cluster: Cluster, message: NodeVitals) -> None:
        self._effects.append(NodeAlive(number, message.node, message.vitals))

    def _on_answer(self, number: int, cluster: Cluster, message: Answer) -> None:
        if message.request not in cluster.asked:
            return  # it was given up
        known = cluster.asked.pop(message.request)
        text = message.text
        if known is not None:
            text = f"{known} {text}{_unsaid(cluster, text)}".strip()
        self._effects.append(Answered(number, message.request, message.code, text))

    def _on_node_ready(self, number: int, cluster: Cluster, message: NodeReady) -> None:
        cluster.nodes[message.node.id] = message.node
        cluster.leaving.discard(message.node.id)
        cluster.met = True
        cluster.patient_until = None
        cluster.troubles.clear()
        self._effects.append(NodeUp(number, message.node, message.cpus))

    def _on_node_gone(self, number: int, cluster: Cluster, message: NodeGone) -> None:
        node = cluster.nodes.pop(message.node, None)
        if node is None:
            return
        self._effects.append(NodeDown(number, node.id, message.reason))
        if node.id in cluster.leaving:
            cluster.leaving.discard(node.id)
        elif not cluster.closing:
            text = (
                f"cluster {cluster.name!r} has lost node {node.name} {node.address}: "
                f"{message.reason}"
            )
            self._effects.append(Warned(text))

    def _on_node_trouble(self, number: int, cluster: Cluster, message: NodeTrouble) -> None:
        troubles = cluster.troubles
        if troubles.get(message.address) == message.reason:
            return
        if message.address not in troubles and len(troubles) >= TROUBLES_MAX:
            return
        troubles[message.address] = message.reason
        text = (
            f"cluster {cluster.name!r} can't use node {message.address}: "
            f"{message.reason}; still trying"
        )
        self._effects.append(Warned(text))

    def _on_closed(self, number: int, cluster: Cluster, message: ClusterClosed) -> None:
        self._forget(number, cluster)

    # -- parts ---------------------------------------------------------------------------

    def _ask(self, cluster: Cluster, message: NodeRequest | SendFile) -> None:
        if isinstance(message, NodeRequest) and message.action in LEAVING:
            cluster.leaving.add(message.node)
        cluster.asked[message.request] = None
        self._effects.append(Send(message))

    def _arrives(self, number: int, cluster: Cluster, record: JobRecord) -> bool:
        """Whether a record is new; what was heard before is said once more."""
        report = cluster.reports.get(record.seq)
        if report is None or report.attempt < record.attempt:
            if report is not None:
                self._effects.append(Silent(number, [record.seq]))
            report = Report(record.attempt, record.number - 1)
            cluster.reports[record.seq] = report
        if report.attempt > record.attempt:
            return False
        if record.number <= report.heard:
            cluster.heard.append(Heard(record.seq, record.attempt, report.heard))
            self._sendable[number] = None
        return report.arrive(record.number)

    def _send_heard(self, number: int, cluster: Cluster) -> None:
        if cluster.heard:
            self._effects.append(Send(RecordsHeard(number, cluster.heard)))
            cluster.heard = []

    def _send_jobs(self, number: int, cluster: Cluster) -> None:
        """Send what waits, as far as the broker has asked for it."""
        while cluster.waiting and cluster.sent < cluster.credit and not cluster.closing:
            batch = _next_batch(cluster, min(BATCH_JOBS, cluster.credit - cluster.sent))
            if batch:
                cluster.sent += len(batch)
                self._effects.append(Sending(number, batch))
                specs = [job._spec for job in batch if job._spec is not None]
                self._effects.append(Send(Submit(number, specs)))

    def _reopen(self, number: int, cluster: Cluster) -> None:
        """Say everything again. A broker that knows some of it all the same ignores that."""
        for node in cluster.nodes:
            self._effects.append(NodeDown(number, node, "the connection to the broker was lost"))
        cluster.nodes.clear()
        cluster.leaving.clear()
        cluster.away.clear()
        cluster.credit = cluster.sent = 0
        if cluster.reports:
            self._effects.append(Silent(number, list(cluster.reports)))
            cluster.reports.clear()
        cluster.heard.clear()
        self._effects.append(Send(cluster.opening))
        questions, cluster.questions = cluster.questions, []
        for question in questions:
            self._ask(cluster, question)
        if cluster.cancelled:
            self._effects.append(Send(CancelJobs(number, list(cluster.cancelled))))
            self._end_here(number, cluster, list(cluster.cancelled))
        cluster.waiting = Line(cluster.unfinished.values())

    def _end_here(
        self,
        number: int,
        cluster: Cluster,
        seqs: Sequence[int],
        status: int = CANCELLED,
        body: bytes = b"",
    ) -> None:
        """End jobs that no node has, or none that we will ever hear of."""
        jobs = []
        told = [seq for seq in seqs if seq in cluster.reports] if cluster.reports else []
        for seq in seqs:
            cluster.away.discard(seq)
            cluster.cancelled.pop(seq, None)
            cluster.reports.pop(seq, None)
            job = cluster.unfinished.pop(seq)
            jobs.append((job, JobResult(seq, 0, status, 0.0, 0.0, body)))
        left = len(cluster.unfinished) - len(cluster.away)
        if len(cluster.waiting) > 2 * left + ENDED_MAX:  # mostly of jobs that have ended
            cluster.waiting = Line(
                job for seq, job in cluster.unfinished.items() if seq not in cluster.away
            )
        if jobs:
            self._effects.append(Ended(number, 0, jobs))
        if told:
            self._effects.append(Silent(number, told))

    def _answer_all(self, number: int, cluster: Cluster, reason: str) -> None:
        for request in cluster.asked:
            self._effects.append(Answered(number, request, -1, reason))
        cluster.asked.clear()
        for question in cluster.questions:
            self._effects.append(Answered(number, question.request, -1, reason))
        cluster.questions.clear()

    def _forget(self, number: int, cluster: Cluster) -> None:
        self._answer_all(number, cluster, "the cluster was closed")
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
            assert cluster.away <= cluster.unfinished.keys()
            waiting = {job._seq for job in cluster.waiting} & cluster.unfinished.keys()
            assert cluster.closing or waiting == cluster.unfinished.keys() - cluster.away
            assert cluster.reports.keys() <= cluster.unfinished.keys()
            assert cluster.cancelled.keys() <= cluster.away or not self.joined

    HANDLERS: ClassVar[dict[type, Callable[..., None]]] = {
        ClusterOpened: _on_opened,
        Credit: _on_credit,
        Results: _on_results,
        JobsRunning: _on_running,
        JobsRequeued: _on_requeued,
        Records: _on_records,
        NeedBlobs: _on_need,
        NodeOffer: _on_offer,
        NodeVitals: _on_vitals,
        Answer: _on_answer,
        NodeReady: _on_node_ready,
        NodeGone: _on_node_gone,
        NodeTrouble: _on_node_trouble,
        ClusterClosed: _on_closed,
    }


def payload_bytes(spec: JobSpec | JobResult | JobRecord) -> int:
    """How many bytes of payload a job or a result carries."""
    size = len(spec.payload)
    return size + sum([part.size for part in spec.parts]) if spec.parts else size


def _next_batch(cluster: Cluster, limit: int) -> list[DispyJob]:
    """Take jobs off the queue, until there are enough of them for one message."""
    batch: list[DispyJob] = []
    size = 0
    while cluster.waiting and len(batch) < limit and size < BATCH_BYTES:
        job = cluster.waiting.pop()
        if job._seq in cluster.unfinished:  # else it was cancelled meanwhile
            assert job._spec is not None
            cluster.away.add(job._seq)
            batch.append(job)
            size += payload_bytes(job._spec)
    return batch


def _why_not_sent(cluster: Cluster, job: DispyJob) -> str:
    """Say why a job is still here."""
    ahead = sum(other._seq in cluster.unfinished for other in cluster.waiting.before(job))
    return f"it waits in this program, behind {ahead + len(cluster.away)} jobs."


def _unsaid(cluster: Cluster, text: str) -> str:
    """Say what an explanation of the broker leaves out of the troubles with nodes."""
    if cluster.troubles:
        why = [f"{at}: {why}" for at, why in cluster.troubles.items() if why not in text]
    else:
        why = [] if cluster.met or "no answer from" in text else [_reasons(cluster)]
    return f" ({'; '.join(why)})" if why else ""


def _complaint(cluster: Cluster) -> str:
    """Say that a cluster has no node, and why."""
    reasons = _reasons(cluster)
    return f"cluster {cluster.name!r} has no node to run jobs on ({reasons}); still trying"


def _reasons(cluster: Cluster) -> str:
    """Say which nodes a cluster waits for, and why."""
    if cluster.troubles:
        return "; ".join(f"{address}: {why}" for address, why in cluster.troubles.items())
    return "no answer from " + ", ".join(_describe(spec) for spec in cluster.opening.nodes)


def _describe(spec: NodeSpec) -> str:
    return f"{spec.pattern}:{spec.port}" if spec.port else spec.pattern
