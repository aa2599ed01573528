"""The client's state machine: which jobs wait here, which the broker has, which have ended.

It does no I/O and reads no clock: each call is given one event and, where it matters, the
time, and changes the state; `take` returns what is to be done. Each subject has a file with
functions over the state, and with the handlers of its messages:

`sending`: which jobs go to the broker. `rejoining`: what becomes of them when a session with it
begins. `news`: what it says of jobs that run, and of nodes. `endings`: when a job has ended; what
it then looks like is `ledger`'s subject. `reasons`: all of that in words.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import msgspec

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    CANCELLED,
    TERMINATED,
    Accepted,
    Allocate,
    BlobPiece,
    BlobPieces,
    Body,
    CancelJobs,
    CloseCluster,
    ClusterClosed,
    ClusterLost,
    ClusterOpened,
    Code,
    Credit,
    Define,
    Explain,
    FollowJobs,
    Heard,
    JobOptions,
    JobResult,
    NodeRequest,
    OpenCluster,
    Rejected,
    Results,
    SendFile,
)

from . import endings, news, rejoining, sending
from .effects import Answered, Effect, Ended, Send, Warned
from .endings import end_here, forget
from .job import DispyJob
from .news import TROUBLES_MAX
from .reasons import complaint, unclosed, why_no_broker, why_not_sent
from .sending import send_heard, send_jobs
from .state import Cluster, State

PATIENCE_S = 2.5  # without any node, before the user is told, which is to be within 3 s


class Core:
    """All clusters of this process at one broker."""

    HANDLERS: ClassVar[dict[type[Any], Callable[..., None]]] = {
        Accepted: sending.on_accepted,
        ClusterClosed: endings.on_closed,
        ClusterLost: endings.on_lost,
        ClusterOpened: rejoining.on_opened,
        Credit: sending.on_credit,
        Rejected: sending.on_rejected,
        Results: endings.on_results,
        **news.HANDLERS,
    }

    def __init__(self) -> None:
        self.state = State()
        self.clusters = self.state.clusters
        self._next_complaint = float("inf")

    @property
    def joined(self) -> bool:
        """Whether there is a session with the broker."""
        return self.state.joined

    # -- what users want -----------------------------------------------------------------

    def open(self, opening: OpenCluster, now: float) -> None:
        """Begin with a cluster; its number is new."""
        assert opening.cluster not in self.clusters
        self.clusters[opening.cluster] = Cluster(opening, now + PATIENCE_S)
        self._next_complaint = min(self._next_complaint, now + PATIENCE_S)
        if self.joined:
            self.state.effects.append(Send(opening))

    def submit(self, number: int, job: DispyJob) -> None:
        """Queue a job. It may be on its way after this, or after any later event."""
        cluster = self.clusters.get(number)
        if cluster is None:  # the cluster ended by itself, since the broker is gone
            result = JobResult(job._seq, 0, CANCELLED, 0.0, 0.0, b"")
            self.state.effects.append(Ended(number, 0, [(job, result)]))
            return
        cluster.unfinished[job._seq] = job
        cluster.waiting.append(job)
        self.state.sendable[number] = None

    def cancel(self, number: int, seq: int) -> None:
        """End a job as soon as possible; one that has ended stays as it is."""
        cluster = self.clusters.get(number)
        if cluster is None or seq not in cluster.unfinished or seq in cluster.cancelled:
            return
        if seq not in cluster.away:
            end_here(self.state, number, cluster, [seq])
            return
        cluster.cancelled[seq] = None
        if self.joined:
            self.state.effects.append(Send(CancelJobs(number, [seq])))

    def close(self, number: int) -> None:
        """Take no more jobs, cancel those that are left; `Closed` follows."""
        cluster = self.clusters.get(number)
        if cluster is None or cluster.closing:
            return
        cluster.closing = True
        cluster.patient_until = None
        if not self.joined or self.state.unreachable:
            self._say_unclosed(cluster)
        if not self.joined:
            forget(self.state, number, cluster)
            return
        unsent = [seq for seq in cluster.unfinished if seq not in cluster.away]
        end_here(self.state, number, cluster, unsent)
        self.state.effects.append(Send(CloseCluster(number)))
        if self.state.unreachable:
            forget(self.state, number, cluster)

    def _say_unclosed(self, cluster: Cluster) -> None:
        if cluster.away:
            self.state.effects.append(Warned(unclosed(cluster)))

    def define(self, number: int, layers: list[Code]) -> None:
        """Make code known to nodes that the jobs to come need."""
        cluster = self.clusters.get(number)
        if cluster is None or cluster.closing:
            return
        spec = cluster.opening.computation
        spec = msgspec.structs.replace(spec, layers=[*spec.layers, *layers])
        cluster.opening = msgspec.structs.replace(cluster.opening, computation=spec)
        if self.joined:
            self.state.effects.append(Send(Define(number, layers)))

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
            self.state.effects.append(Send(FollowJobs(number, [seq])))

    def hear(self, number: int, seq: int, attempt: int, count: int, error: str = "") -> None:
        """A record has been dealt with; tell the job, so that it may go on."""
        cluster = self.clusters.get(number)
        report = None if cluster is None else cluster.reports.get(seq)
        if cluster is None or report is None or report.attempt != attempt:
            return
        heard = [Heard(seq, attempt, up_to, why) for up_to, why in report.deal(count, error)]
        cluster.heard += heard
        self.state.sendable[number] = None

    def send_pieces(self, number: int, node: int, pieces: list[BlobPiece]) -> None:
        """Send pieces of blobs that a node needs."""
        if self.joined and number in self.clusters:
            self.state.effects.append(Send(BlobPieces(number, node, pieces)))

    def allocate(self, message: Allocate, address: str) -> None:
        """Use so much of a node that was offered."""
        cluster = self.clusters.get(message.cluster)
        if cluster is None or cluster.closing or not self.joined:
            return  # a new session comes with new offers
        if not message.cpus and len(cluster.troubles) < TROUBLES_MAX:
            cluster.troubles[address] = "allocate() returned 0 CPUs for it"
        self.state.effects.append(Send(message))

    def request(self, message: NodeRequest | SendFile) -> None:
        """Ask the broker for something; `Answered` follows."""
        cluster = self.clusters.get(message.cluster)
        if cluster is None:
            return  # `Closed` was the answer to all requests, and nobody is left to be told
        if cluster.closing:
            reason = "the cluster is closed"
            self.state.effects.append(Answered(message.cluster, message.request, -1, reason))
        elif self.joined:
            rejoining.ask(self.state, cluster, message)
        else:
            cluster.questions.append(message)  # whoever asks doesn't wait for ever

    def explain(self, number: int, request: int, seq: int) -> None:
        """Say what a job waits for; `Answered` follows."""
        cluster = self.clusters.get(number)
        if cluster is None:
            return  # as in `request`
        job = cluster.unfinished.get(seq)
        if job is None:
            self.state.effects.append(Answered(number, request, 0, "it has ended"))
        elif not self.joined or self.state.unreachable:
            text = why_no_broker(self.state, cluster, job)
            self.state.effects.append(Answered(number, request, 0, text))
        else:
            cluster.asked[request] = "" if seq in cluster.away else why_not_sent(cluster, job)
            self.state.effects.append(Send(Explain(number, request, seq)))

    # -- what the broker does ------------------------------------------------------------

    def join(self, now: float) -> None:
        """A session with the broker begins."""
        for cluster in self.clusters.values():
            if cluster.patient_until is not None:
                cluster.patient_until = now + PATIENCE_S
        rejoining.join(self.state)

    def unreachable(self, reason: str) -> None:
        """The broker can't be reached for now; empty: it can."""
        self.state.unreachable = reason
        for number, cluster in list(self.clusters.items()) if reason else ():
            if cluster.closing:  # it may be for hours: nobody waits for that
                self._say_unclosed(cluster)
                forget(self.state, number, cluster)

    def leave(self) -> None:
        """The session is over. Jobs wait for the next one, clusters that close are closed."""
        rejoining.leave(self.state)

    def give_up(self, reason: str) -> None:
        """End everything, since this process can't go on; no job is left waiting for ever."""
        state = self.state
        state.joined = False
        for number, cluster in list(state.clusters.items()):
            end_here(state, number, cluster, list(cluster.unfinished), TERMINATED, reason)
            forget(state, number, cluster)

    def receive(self, message: Body, now: float) -> None:
        """Handle one message of the broker. Raises `ProtocolError` for what it can't say."""
        handler = self.HANDLERS.get(type(message))
        if handler is None:
            raise ProtocolError(f"a client takes no {type(message).__name__}")
        number: int = message.cluster  # type: ignore[union-attr]
        cluster = self.clusters.get(number)
        if cluster is not None:
            handler(self.state, number, cluster, message)
        elif type(message) is ClusterClosed:
            self.state.unclosed.pop(number, None)

    def tick(self, now: float) -> None:
        """Tell the user about clusters that have been without a node for too long."""
        if now < self._next_complaint:
            return
        if not self.joined:  # which is the session's subject, not the nodes' fault
            self._next_complaint = now + PATIENCE_S
            return
        self._next_complaint = float("inf")
        for cluster in self.clusters.values():
            if cluster.patient_until is None:
                continue
            if now >= cluster.patient_until:
                cluster.patient_until = None
                self.state.effects.append(Warned(complaint(cluster)))
            else:
                self._next_complaint = min(self._next_complaint, cluster.patient_until)

    def deadline(self) -> float:
        """When `tick` next has something to do."""
        return self._next_complaint

    def take(self) -> list[Effect]:
        """Return what is to be done, in order, and forget it."""
        state = self.state
        sendable, state.sendable = state.sendable, {}
        for number in sendable:
            cluster = state.clusters.get(number)
            if cluster is not None and state.joined:
                send_heard(state, number, cluster)
                send_jobs(state, number, cluster)
        effects, state.effects = state.effects, []
        return effects

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        assert not self.clusters.keys() & self.state.unclosed.keys()
        for cluster in self.clusters.values():
            assert not cluster.unfinished.keys() & cluster.abandoned.keys()
            assert cluster.cancelled.keys() <= cluster.unfinished.keys()
            assert list(cluster.unfinished) == sorted(cluster.unfinished)
            assert cluster.away <= cluster.unfinished.keys()
            waiting = {job._seq for job in cluster.waiting} & cluster.unfinished.keys()
            assert cluster.closing or waiting == cluster.unfinished.keys() - cluster.away
            assert cluster.reports.keys() <= cluster.unfinished.keys()
            assert cluster.cancelled.keys() <= cluster.away
