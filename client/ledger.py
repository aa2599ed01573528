"""What has become of one cluster's jobs: their ends, its nodes, who waits, whom to tell.

Between the session's thread, which writes it, and the threads of the user, which read it and
wait on it. Only this file fills jobs in.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Condition, Lock
from typing import Any, TypeAlias

from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FINISHED,
    TERMINATED,
    Buffer,
    JobResult,
    Large,
    NodeInfo,
)
from dispy.protocol.payload import unpack_result

from .allocate import LOOPBACK
from .callbacks import Listener
from .core import payload_bytes
from .job import DispyJob
from .nodes import DispyNode
from .pickling import load

JobStatus: TypeAlias = Callable[[DispyJob], Any]
ClusterStatusCallback: TypeAlias = Callable[[int, "DispyNode | None", "DispyJob | None"], Any]

UNSAID = {  # for ends that nobody has explained
    CANCELLED: "Cancelled",
    TERMINATED: "the job's process ended",
    ABANDONED: "the node that the job was on is lost",
}


class Ledger:
    """The state of a cluster as its user sees it."""

    def __init__(
        self, job_status: JobStatus | None, cluster_status: ClusterStatusCallback | None
    ) -> None:
        self.lock = Lock()  # guards what follows
        self.change = Condition(self.lock)  # tells when no job is pending, and when it's closed
        self.pending = 0  # jobs submitted and not ended
        self.last_seq = 0
        self.accepting = True  # jobs may be submitted
        self.closed = False  # nothing more will happen
        self.listener = Listener()
        self._job_status = job_status
        self._cluster_status = cluster_status
        self._nodes: dict[int, DispyNode] = {}
        self._rows: dict[tuple[str, str], DispyNode] = {}  # the same, by address and name

    # -- for the user's threads ----------------------------------------------------------

    def wait_idle(self, timeout: float | None) -> bool:
        """Wait until no job is pending; False if that took too long."""
        with self.change:
            return self.change.wait_for(lambda: not self.pending or self.closed, timeout)

    def wait_closed(self, timeout: float | None) -> bool:
        """Wait until the broker has closed the cluster; False if that took too long."""
        with self.change:
            return self.change.wait_for(lambda: self.closed, timeout)

    def stop_accepting(self, even_if_pending: bool) -> bool:
        """Take no more jobs from now on; False, and nothing changes, while jobs are pending."""
        with self.change:
            if self.pending and not even_if_pending:
                return False
            self.accepting = False
            return True

    def nodes(self) -> list[DispyNode]:
        """Return all nodes that the cluster has used."""
        with self.lock:
            return list(self._rows.values())

    def orphan(self) -> None:
        """In a forked child: whatever was going on goes on in the parent."""
        self.lock = Lock()
        self.change = Condition(self.lock)
        self.accepting = False
        self.closed = True

    def created(self, job: DispyJob) -> None:
        """Tell the user's callback about a new job, before anything else about it is told."""
        if self._cluster_status is not None:
            self.listener.post(self._cluster_status, DispyJob.Created, None, job)

    # -- for the session's thread --------------------------------------------------------

    def begin(self, node_id: int, jobs: list[tuple[DispyJob, float]]) -> None:
        """These jobs are running, since a time in seconds since the epoch."""
        node = self._nodes.get(node_id)
        for job, start in jobs:
            if job.status == DispyJob.Created:
                self._begin(job, node, start)

    def end(self, node_id: int, jobs: list[tuple[DispyJob, JobResult]]) -> None:
        """These jobs have ended."""
        node = self._nodes.get(node_id)
        count = 0
        for job, result in jobs:
            count += job.status < DispyJob.Cancelled  # an abandoned one was counted before
            self._end(job, node, result)
        with self.change:
            self.pending -= count
            if not self.pending:
                self.change.notify_all()

    def node_up(self, info: NodeInfo, cpus: int = 0) -> None:
        """A node is ready for jobs on so many of its CPUs (0: all).

        It may be one that was here before.
        """
        address = info.address.rpartition(":")[0].strip("[]") or info.address or LOOPBACK
        with self.lock:
            row = self._rows.get((info.address, info.name))
            if row is None:
                row = DispyNode(address, info.name, info.cpus)
                self._rows[info.address, info.name] = row
            self._nodes[info.id] = row
        row.status = DispyNode.Initialized
        row.cpus, row.avail_cpus = info.cpus, cpus or info.cpus
        row.update_time = time.time()
        self._tell(DispyNode.Initialized, row, None)

    def node_down(self, node_id: int) -> None:
        """A node gets no more jobs; those it still has may yet end."""
        node = self._nodes.get(node_id)
        if node is not None and node.status != DispyNode.Closed:
            node.status = DispyNode.Closed
            self._tell(DispyNode.Closed, node, None)

    def close(self) -> None:
        """Nothing more will happen; wake whoever waits for it."""
        for node_id in list(self._nodes):
            self.node_down(node_id)
        with self.change:
            self.accepting = False
            self.closed = True
            self.change.notify_all()

    def _begin(self, job: DispyJob, node: DispyNode | None, start: float) -> None:
        job.status = DispyJob.Running
        job.start_time = start
        if node is not None:
            job.host = node.ip_addr
            node.busy += 1
        if self._cluster_status is not None:
            self.listener.post(self._cluster_status, DispyJob.Running, node, job)

    def _end(self, job: DispyJob, node: DispyNode | None, result: JobResult) -> None:
        if job.status == DispyJob.Created and self._cluster_status is not None and result.start:
            self._begin(job, node, result.start)  # it was too short to be told of before
        if node is not None:
            _count(job, node, result)
        fill(job, result)
        if self._job_status is not None:
            self.listener.post(self._job_status, job)
        if self._cluster_status is not None:
            self.listener.post(self._cluster_status, job.status, node, job)

    def _tell(self, status: int, node: DispyNode, job: DispyJob | None) -> None:
        if self._cluster_status is not None:
            self.listener.post(self._cluster_status, status, node, job)


def fill(job: DispyJob, result: JobResult) -> None:
    """Put into a job how it ended, and set its event."""
    status = result.status
    job.start_time = result.start or job.start_time
    job.end_time = result.end or None
    job.exception = None if status == FINISHED else UNSAID[status]
    if result.payload or result.parts:
        status = _unpack(job, result)
    job._spec = None
    # Only now, and then the event: whoever waits for it, or makes it later, sees all of it.
    job.status = status
    if job._finish is not None:
        job._finish.set()


def _unpack(job: DispyJob, result: JobResult) -> int:
    """Put what a job process has packed into the job; return the status that this gives."""
    body, buffers = _body(result)
    try:
        value, stdout, stderr, exception = unpack_result(body)
        job.stdout = stdout.decode("utf-8", "replace") if stdout else ""
        job.stderr = stderr.decode("utf-8", "replace") if stderr else ""
        job.exception = exception or job.exception
        if result.status == FINISHED:
            job.result = load(value, buffers)
        elif value:
            job.exc = _exception(value, buffers)
    except BaseException as error:  # unpickling runs the user's code, which may raise anything
        job.exception = f"the result can't be unpickled: {type(error).__name__}: {error}"
        job.exc = error
        return TERMINATED
    return result.status


def _body(result: JobResult) -> tuple[Buffer, list[Large]]:
    """Return a result's body and the buffers that belong to its value."""
    if result.payload:
        return result.payload, result.parts
    return result.parts[0].tobytes(), result.parts[1:]


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
    if job.status == DispyJob.Running:
        node.busy -= 1
    if job._spec is not None:
        node.tx += payload_bytes(job._spec)
    node.rx += payload_bytes(result)
    node.update_time = result.end or node.update_time
    if result.status in (FINISHED, TERMINATED):
        node.jobs_done += 1
        node.cpu_time += max(0.0, result.end - result.start)
