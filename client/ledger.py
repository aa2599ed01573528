"""What has become of one cluster's jobs: their ends, its nodes, who waits, whom to tell.

Between the session's thread, which writes it, and the threads of the user, which read it and
wait on it. Only this file fills jobs in.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from threading import Condition, Lock
from typing import TYPE_CHECKING, Any, TypeAlias

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FINISHED,
    TERMINATED,
    Buffer,
    JobRecord,
    JobResult,
    Large,
    NodeInfo,
    Vitals,
)
from dispy.protocol.payload import unpack_result

from . import callbacks
from .allocate import LOOPBACK
from .callbacks import Listener
from .job import DispyJob, ProvisionalJob, as_text, payload_bytes
from .log import logger
from .nodes import DispyNode, DispyNodeAvailInfo
from .orders import Follow, Hear, Order
from .output import Feed, Output, whole
from .pickling import load
from .requests import Requests

if TYPE_CHECKING:
    from .blobs import BlobSource
    from .offers import Offers

JobStatus: TypeAlias = Callable[[DispyJob], Any]
JobOutput: TypeAlias = Callable[[DispyJob, str, str], Any]
ClusterStatusCallback: TypeAlias = Callable[[int, "DispyNode | None", "DispyJob | None"], Any]

UNSAID = {  # for ends that nobody has explained
    CANCELLED: "Cancelled",
    TERMINATED: "the job's process ended",
    ABANDONED: "the node that the job was on is lost",
}


_ALONE = Lock()  # for jobs without a ledger


class Left:
    """What a job has left, unpacked."""

    __slots__ = ("exc", "exception", "status", "stderr", "stdout", "value")

    def __init__(self, status: int) -> None:
        self.status = status
        self.value: Any = None
        self.stdout: str | bytes | None = None
        self.stderr: str | bytes | None = None
        self.exception: str | None = UNSAID.get(status)
        self.exc: BaseException | None = None


def _nobody(order: Order) -> None:
    """Take an order when there is no session: nobody waits for what it would do."""


class Ledger:
    """The state of a cluster as its user sees it."""

    def __init__(
        self,
        job_status: JobStatus | None,
        cluster_status: ClusterStatusCallback | None,
        job_output: JobOutput | None = None,
        *,
        number: int = 0,
        binary: bool = False,
        blobs: BlobSource | None = None,
    ) -> None:
        self.lock = Lock()  # guards what follows
        self.change = Condition(self.lock)  # tells when no job is pending, and when it's closed
        self._waiting = 0  # threads, for that
        self.pending = 0  # jobs submitted and not ended
        self._telling = False  # jobs end just now, and not all of them have been told of
        self.last_seq = 0
        self.accepting = True  # jobs may be submitted
        self.closed = False  # nothing more will happen
        self.listener = Listener()
        self.requests = Requests()
        self.offers: Offers | None = None  # who decides how much of a node is used
        self.blobs = blobs  # what nodes may ask for
        self.folder = os.getcwd()  # where files that jobs send go
        self.hand_over: Callable[[Order], None] = _nobody  # that of the session
        self._number = number
        self._binary = binary  # output stays bytes
        self._job_status = job_status
        self._cluster_status = cluster_status
        self._job_output = job_output
        self._feeds: dict[int, Feed] = {}  # of jobs that are followed, by seq
        self._filling = Lock()  # so that provisional results don't overwrite ends
        self._running: dict[int, tuple[DispyJob, DispyNode | None]] = {}  # by seq
        self._nodes: dict[int, DispyNode] = {}
        self._rows: dict[tuple[str, str], DispyNode] = {}  # the same, by address and name
        self._sent_ahead: dict[int, int] = {}  # bytes of files to nodes that aren't ready so far

    # -- for the user's threads ----------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether all jobs have ended and callbacks have been posted for all of them."""
        return not self.pending and not self._telling  # in this order: see `end`

    def wait_idle(self, timeout: float | None) -> bool:
        """Wait until the ledger is idle; False if that took too long."""
        return self._wait(lambda: self.is_idle or self.closed, timeout)

    def wait_closed(self, timeout: float | None) -> bool:
        """Wait until the broker has closed the cluster; False if that took too long."""
        return self._wait(lambda: self.closed, timeout)

    def stop_accepting(self, even_if_pending: bool) -> bool:
        """Take no more jobs from now on; False, and nothing changes, unless the ledger is idle."""
        with self.change:
            if not even_if_pending and not self.is_idle:
                return False
            self.accepting = False
            return True

    def nodes(self) -> list[DispyNode]:
        """Return all nodes that the cluster has used."""
        with self.lock:
            return list(self._rows.values())

    def jobs_at(self, node: DispyNode) -> list[DispyJob]:
        """Return the jobs that are known to be running at a node."""
        running = list(self._running.values())
        return [job for job, at in running if at is node]

    def follow(self, job: DispyJob) -> Iterator[Output]:
        """Return an iterator over what a job prints. Raises `RuntimeError` if there is one."""
        with self._filling:
            feed = self._feeds.get(job._seq)
            ended = job.status >= DispyJob.Cancelled
            if feed is None and not ended:
                feed = self._feeds[job._seq] = self._new_feed(job)
        if feed is None:
            return whole(as_text(job.stdout), as_text(job.stderr))
        follower = feed.follow()
        self.hand_over(Follow(self._number, job._seq))
        return follower

    def order(self, order: Order) -> None:
        """Hand an order to the session."""
        self.hand_over(order)

    def orphan(self) -> None:
        """In a forked child: whatever was going on goes on in the parent."""
        self.lock = Lock()
        self.change = Condition(self.lock)
        self._waiting = 0
        self._telling = False
        self.accepting = False
        self.closed = True
        self._filling = Lock()
        self.requests.orphan()
        for feed in self._feeds.values():
            feed.orphan()

    def created(self, job: DispyJob) -> None:
        """Tell the user's callback about a new job, before anything else about it is told."""
        if self._cluster_status is not None:
            self.listener.post(self._cluster_status, DispyJob.Created, None, job)

    # -- for the session's thread --------------------------------------------------------

    def begin(self, node_id: int, jobs: list[tuple[DispyJob, float]]) -> None:
        """These jobs are running, since a time in seconds since the epoch."""
        node = self._nodes.get(node_id)
        for job, start in jobs:
            if job._seq in self._running:
                job.start_time = start  # it has said something before
            elif job.status == DispyJob.Created:
                self._begin(job, node, start)

    def requeue(self, jobs: list[DispyJob]) -> None:
        """These jobs wait again: they failed, or their node was lost."""
        for job in jobs:
            if job._seq not in self._running:
                continue
            self._leave(job)
            with self._filling:
                job.status = DispyJob.Created
                job.result = job.start_time = job.host = None
            if self._cluster_status is not None:
                self.listener.post(self._cluster_status, DispyJob.Created, None, job)

    def provisional(self, node_id: int, job: DispyJob, record: JobRecord) -> None:
        """A job tells a provisional result; it waits for being heard."""
        node = self._meet(node_id, job, record)
        if self._job_status is None and self._cluster_status is None:
            self._say_provisional(job, node, record)
        else:
            self.listener.post(self._say_provisional, job, node, record)

    def received(self, node_id: int, job: DispyJob, record: JobRecord) -> None:
        """A job sends a piece of a file; somebody else writes it."""
        self._meet(node_id, job, record)

    def printed(self, node_id: int, job: DispyJob, record: JobRecord) -> None:
        """A job tells what it has printed."""
        self._meet(node_id, job, record)
        feed = self._feeds.get(job._seq)
        if feed is None and self._job_output is not None:
            feed = self._feeds[job._seq] = self._new_feed(job)
        if feed is None:  # nobody wants to know
            self._hear(job._seq, record.attempt, record.number)
        elif feed.put(record) and self._job_output is not None:
            self.listener.post(feed.deliver, self._job_output, job)

    def sent(self, node_id: int, count: int) -> None:
        """So many bytes of files went to a node."""
        node = self._nodes.get(node_id)
        if node is not None:
            node.tx += count
        else:
            self._sent_ahead[node_id] = self._sent_ahead.get(node_id, 0) + count

    def end(self, node_id: int, jobs: list[tuple[DispyJob, JobResult]]) -> None:
        """These jobs have ended.

        Each is counted before it is told of, so that who is told sees it counted; and who waits
        for all of them goes on when the last has been told of.
        """
        node = self._nodes.get(node_id)
        self._telling = True
        for job, result in jobs:
            self._end(job, node, result)
        with self.lock:
            self._telling = False
            if self._waiting and not self.pending:
                self.change.notify_all()

    def node_up(self, info: NodeInfo, cpus: int = 0, named: str = "") -> None:
        """A node is ready for jobs on so many of its CPUs (0: all).

        It may be one that was here before. ``named``: its address as the cluster names it.
        """
        address = named or info.address
        with self.lock:
            row = self._rows.get((info.address, info.name))
            if row is None:
                ip_addr = address.rpartition(":")[0].strip("[]") or address or LOOPBACK
                row = DispyNode(ip_addr, info.name, info.cpus, address)
                self._rows[info.address, info.name] = row
            self._nodes[info.id] = row
            row._id = info.id
            row._addresses = frozenset((address, *info.addresses))
            row.tx += self._sent_ahead.pop(info.id, 0)
        row.status = DispyNode.Initialized
        row.cpus, row.avail_cpus = info.cpus, cpus or info.cpus
        row.update_time = time.time()
        self._tell(DispyNode.Initialized, row, None)

    def node_down(self, node_id: int) -> None:
        """A node gets no more jobs; those it still has may yet end."""
        node = self._nodes.get(node_id)
        if node is not None and node._id == node_id and node.status != DispyNode.Closed:
            node.status = DispyNode.Closed
            self._tell(DispyNode.Closed, node, None)

    def node_alive(self, node_id: int, vitals: Vitals) -> None:
        """A node tells what it has to spare."""
        node = self._nodes.get(node_id)
        if node is not None:
            node.avail_info = avail_info(vitals)
            node.update_time = time.time()
            self._tell(DispyNode.AvailInfo, node, None)

    def offered(self, info: NodeInfo, vitals: Vitals | None) -> None:
        """Somebody has to decide how much of a node is used."""
        if self.offers is not None:
            self.listener.post(self.offers.decide, info, avail_info(vitals))

    def close(self) -> None:
        """Nothing more will happen; wake whoever waits for it."""
        for node_id in list(self._nodes):
            self.node_down(node_id)
        self.requests.close()
        with self.change:
            self.accepting = False
            self.closed = True
            self.change.notify_all()

    def _wait(self, done: Callable[[], bool], timeout: float | None) -> bool:
        if callbacks.is_here():
            return callbacks.serve_until(done, timeout)
        with self.change:
            self._waiting += 1
            try:
                return self.change.wait_for(done, timeout)
            finally:
                self._waiting -= 1

    def _meet(self, node_id: int, job: DispyJob, record: JobRecord) -> DispyNode | None:
        """Note that a job has said something, so that it is running."""
        if job._seq not in self._running and job.status == DispyJob.Created:
            self._begin(job, self._nodes.get(node_id), time.time())
        node = self._running.get(job._seq, (job, None))[1]
        if node is not None:
            node.rx += payload_bytes(record)
        return node

    def _begin(self, job: DispyJob, node: DispyNode | None, start: float) -> None:
        job.status = DispyJob.Running
        job.start_time = start
        self._running[job._seq] = (job, node)
        if node is not None:
            job.host = node.ip_addr
            node.busy += 1
        if self._cluster_status is not None:
            self.listener.post(self._cluster_status, DispyJob.Running, node, job)

    def _leave(self, job: DispyJob) -> None:
        """Note that a job isn't running any more."""
        _, node = self._running.pop(job._seq, (job, None))
        if node is not None:
            node.busy -= 1

    def _say_provisional(self, job: DispyJob, node: DispyNode | None, record: JobRecord) -> None:
        """Show a provisional result to the user, then let the job go on."""
        error = ""
        try:
            shown = self._as_provisional(job, load(*_body(record)))
        except BaseException as failure:  # unpickling runs the user's code
            error = f"can't be unpickled: {type(failure).__name__}: {failure}"
            logger.warning("a provisional result of job %s %s", job.id, error)
        else:
            if self._job_status is not None:
                callbacks.call(self._job_status, shown)
            if self._cluster_status is not None:
                callbacks.call(self._cluster_status, DispyJob.ProvisionalResult, node, shown)
        self._hear(record.seq, record.attempt, record.number, error)

    def _hear(self, seq: int, attempt: int, number: int, error: str = "") -> None:
        self.hand_over(Hear(self._number, seq, attempt, number, error))

    def _new_feed(self, job: DispyJob) -> Feed:
        return Feed(partial(self._hear, job._seq), to_callback=self._job_output is not None)

    def _end_output(self, job: DispyJob, result: JobResult) -> None:
        """Tell what a followed job has printed and didn't come while it ran."""
        feed = self._feeds.pop(job._seq, None)
        stdout, stderr = _printed(result)
        if feed is None and self._job_output is not None and (stdout or stderr):
            feed = self._new_feed(job)
        if feed is not None:
            feed.end(result.attempt, stdout, stderr)
            if self._job_output is not None:
                self.listener.post(feed.deliver, self._job_output, job)

    def _as_provisional(self, job: DispyJob, value: object) -> DispyJob:
        """Put a provisional result into a job, unless it has ended; return a copy that has it.

        The job itself may end at any moment, or wait for its next attempt, and callbacks read
        it more than once.
        """
        with self._filling:
            if job._seq in self._running and job.status < DispyJob.Cancelled:
                job.result, job.status = value, DispyJob.ProvisionalResult
            return ProvisionalJob(job, value)

    def _end(self, job: DispyJob, node: DispyNode | None, result: JobResult) -> None:
        if job.status == DispyJob.Created and self._cluster_status is not None and result.start:
            self._begin(job, node, result.start)  # it was too short to be told of before
        if job._seq in self._running:
            self._leave(job)
        if node is not None:
            _count(job, node, result)
        counted = job.status >= DispyJob.Cancelled  # it was abandoned
        fill(job, result, self._binary, self._filling)
        if not counted:
            with self.lock:
                self.pending -= 1
        job._say_ended()
        if self._feeds or self._job_output is not None:
            self._end_output(job, result)
        if self._job_status is not None:
            self.listener.post(self._job_status, job)
        if self._cluster_status is not None:
            self.listener.post(self._cluster_status, job.status, node, job)

    def _tell(self, status: int, node: DispyNode, job: DispyJob | None) -> None:
        if self._cluster_status is not None:
            self.listener.post(self._cluster_status, status, node, job)


def avail_info(vitals: Vitals | None) -> DispyNodeAvailInfo | None:
    """What a node has to spare, as users see it."""
    if vitals is None:
        return None
    return DispyNodeAvailInfo(vitals.cpu, vitals.memory, vitals.disk, vitals.swap)


def fill(job: DispyJob, result: JobResult, binary: bool = False, filling: Lock = _ALONE) -> None:
    """Put into a job how it ended; whoever waits for it is still to be told.

    ``binary``: its output stays bytes. ``filling`` is held while the job is being changed.
    """
    left = _unpack(result, binary) if result.payload or result.parts else Left(result.status)
    with filling:
        job.start_time = result.start or job.start_time
        job.end_time = result.end or None
        job.result = left.value
        job.exception = left.exception
        job.exc = left.exc
        if left.stdout is not None:
            job.stdout, job.stderr = left.stdout, left.stderr
        job._spec = None
        job.status = left.status  # last: whoever sees that it has ended sees all of it


def _unpack(result: JobResult, binary: bool) -> Left:
    """Unpack what a job process has packed."""
    body, buffers = _body(result)
    left = Left(result.status)
    try:
        value, stdout, stderr, exception = unpack_result(body)
        left.stdout = stdout if binary else stdout.decode("utf-8", "replace")
        left.stderr = stderr if binary else stderr.decode("utf-8", "replace")
        left.exception = exception or left.exception
        if result.status == FINISHED:
            left.value = load(value, buffers)
        elif value:
            left.exc = _exception(value, buffers)
    except BaseException as error:  # unpickling runs the user's code, which may raise anything
        left.status = TERMINATED
        left.exception = f"the result can't be unpickled: {type(error).__name__}: {error}"
        left.exc = error
    return left


def _body(result: JobResult | JobRecord) -> tuple[Buffer, list[Large]]:
    """Return a body and the buffers that belong to its value."""
    if result.payload:
        return result.payload, result.parts
    return result.parts[0].tobytes(), result.parts[1:]


def _printed(result: JobResult) -> tuple[bytes, bytes]:
    """Return what a job has printed, as far as it is known."""
    if not (result.payload or result.parts):
        return b"", b""
    try:
        body = unpack_result(_body(result)[0])
    except ProtocolError:  # which the job's exception says
        return b"", b""
    return body.stdout, body.stderr


def _exception(value: Buffer, buffers: list[Large]) -> BaseException | None:
    """Unpickle the exception that a job raised, if that is possible here."""
    try:
        exc = load(value, buffers)
    except BaseException:  # its text has come all the same
        return None
    return exc if isinstance(exc, BaseException) else None


def _count(job: DispyJob, node: DispyNode, result: JobResult) -> None:
    """Add a job to what is known of its node."""
    job.host = node.ip_addr
    if job._spec is not None:
        node.tx += payload_bytes(job._spec)
    node.rx += payload_bytes(result)
    node.update_time = result.end or node.update_time
    if result.status in (FINISHED, TERMINATED):
        node.jobs_done += 1
        node.cpu_time += max(0.0, result.end - result.start)
