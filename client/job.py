"""A job as the user sees it.

Plain data but for ``finish``. The session fills it in; a million of them must fit into
memory, so there is no dictionary, and what its end is waited for with exists only once somebody
does so: a lock, which costs a tenth of an event, or the event if somebody asks for it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dispy.protocol.messages import JobRecord, JobResult, JobSpec

from . import callbacks
from .aliases import OldJobNames

if TYPE_CHECKING:
    from .output import Output

NO_KWARGS: dict[str, object] = {}  # shared by all jobs that have none

_EVENT_LOCK = threading.Lock()  # so that a job gets only one event


class Owner(Protocol):
    """What a job needs of its cluster."""

    def explain(self, job: DispyJob) -> str:
        """Say why a job hasn't ended, or how it has."""

    def follow(self, job: DispyJob) -> Iterator[Output]:
        """Return an iterator over what a job prints."""


OWNERS: dict[int, Owner] = {}  # clusters that aren't closed, by their numbers
_ORPHANS: set[int] = set()  # in a forked child: clusters that are its parent's


class DispyJob(OldJobNames):
    """One call of the computation; `JobCluster.submit` returns it.

    Attributes, all but ``id`` to be read only:

    - ``id``: 1, 2, 3, ... in a cluster, or anything you like.
    - ``status``: one of the constants below.
    - ``result``: what the function returned; None until then, and if it failed.
    - ``stdout``, ``stderr``: what the job printed, as text; of a program, as bytes.
    - ``args``, ``kwargs``: what it was submitted with.
    - ``exception``: why the job failed, as text: a traceback, or what happened to its process.
    - ``exc``: the exception object itself, if it could be pickled.
    - ``submit_time``, ``start_time``, ``end_time``: seconds since the epoch, the last two by
      the clock of the node; None while they have not come.
    - ``host``: address of the node where the job runs or ran (also ``ip_addr``).
    - ``finish``: a `threading.Event`, set when the job has ended.

    ``job()`` waits for the end and returns the result. ``job.follow()`` goes through what it
    prints while it runs, ``job.explain()`` says what it waits for. Jobs are ordered by
    submission.
    """

    Created: ClassVar[int] = 5  # waits to be run
    Running: ClassVar[int] = 6
    ProvisionalResult: ClassVar[int] = 7
    Cancelled: ClassVar[int] = 8  # removed before it ran
    Terminated: ClassVar[int] = 9  # raised an exception, was killed, or its process ended
    Abandoned: ClassVar[int] = 10  # its node was lost; it may still become Finished
    Finished: ClassVar[int] = 11  # returned a result

    __slots__ = (
        "_args",
        "_cluster",
        "_finish",
        "_gate",
        "_kwargs",
        "_seq",
        "_spec",
        "end_time",
        "exc",
        "exception",
        "host",
        "id",
        "result",
        "start_time",
        "status",
        "stderr",
        "stdout",
        "submit_time",
    )

    id: Any
    result: Any
    stdout: str | bytes | None
    stderr: str | bytes | None
    exception: str | None
    exc: BaseException | None
    submit_time: float
    start_time: float | None
    end_time: float | None
    status: int
    host: str | None
    _finish: threading.Event | None
    _gate: threading.Lock | None  # held until the job has ended; whoever waits passes it on
    _spec: JobSpec | None  # until the job has ended

    def __init__(
        self,
        cluster: int,
        spec: JobSpec,
        job_id: object,  # None: its number
        args: tuple[object, ...] | None,
        kwargs: dict[str, object],
    ) -> None:
        self._cluster = cluster
        self._seq = spec.seq
        self._spec = spec
        self._args = args
        self._kwargs = kwargs or NO_KWARGS
        self.id = spec.seq if job_id is None else job_id
        self.status = 5
        self.submit_time = time.time()
        self.result = self.stdout = self.stderr = self.exception = self.exc = None
        self.start_time = self.end_time = self.host = self._finish = self._gate = None

    @property
    def finish(self) -> threading.Event:
        """The event that is set when the job has ended."""
        if self._finish is None:
            with _EVENT_LOCK:
                if self._finish is None:
                    event = threading.Event()
                    if self.status >= DispyJob.Cancelled:
                        event.set()
                    self._finish = event
                    # The end of a job sets the status and then looks for an event; here it
                    # is the other way round, so at least one of the two sets the event.
                    if self.status >= DispyJob.Cancelled:
                        event.set()
        return self._finish

    @property
    def args(self) -> tuple[Any, ...] | None:
        """The positional arguments. None: they were too large to be kept for a recovery."""
        return self._args

    @property
    def kwargs(self) -> dict[str, Any]:
        """The arguments by name."""
        return self._kwargs

    def explain(self) -> str:
        """Say why the job hasn't ended so far, or how it has ended."""
        owner = OWNERS.get(self._cluster)
        return owner.explain(self) if owner is not None else explain_end(self)

    def follow(self) -> Iterator[Output]:
        """Go through what the job prints while it runs: pairs (stream, text).

        The stream is "stdout" or "stderr". The iteration ends with the job; of one that has
        ended it is all that it has printed. A job that prints faster than this is read isn't
        held up, but what is over 1 MiB behind is lost. Raises `RuntimeError` if somebody else
        follows the job.
        """
        owner = OWNERS.get(self._cluster)
        if owner is not None:
            return owner.follow(self)
        from .output import whole  # a closed cluster: all jobs have ended

        return whole(as_text(self.stdout), as_text(self.stderr))

    def __call__(self, clear: bool = False) -> Any:
        """Wait for the end of the job; return its result, None if it failed.

        With ``clear`` the event ``finish`` is cleared afterwards. Raises `RuntimeError` in a
        forked child, which doesn't learn of the end of its parent's jobs.
        """
        if self._finish is None and self.status >= DispyJob.Cancelled and not clear:
            return self.result  # nobody has asked for the event, and there is no need for it
        if self._cluster in _ORPHANS and self.status < DispyJob.Cancelled:
            raise RuntimeError(f"job {self.id} is the parent process's: wait for it there")
        if callbacks.is_here():  # the job may need others to be called
            callbacks.serve_until(self.finish.is_set, None)
        elif self._finish is None and not clear:
            self._wait()
        else:
            self.finish.wait()
        if clear:
            self.finish.clear()
        return self.result

    def _wait(self) -> None:
        """Wait for the end, without an event."""
        with _EVENT_LOCK:
            gate = self._gate
            if gate is None:
                gate = threading.Lock()
                gate.acquire()
                self._gate = gate
        # As with the event: the end sets the status first, then it looks for the gate.
        if self.status < DispyJob.Cancelled:
            try:
                gate.acquire()
            finally:  # a signal may end the waiting just when it's our turn to pass the gate on
                if self.status >= DispyJob.Cancelled:
                    _open(gate)

    def _say_ended(self) -> None:
        """The status says that the job has ended: whoever waits for it may go on."""
        if self._finish is not None:
            self._finish.set()
        gate, self._gate = self._gate, None
        if gate is not None:
            _open(gate)

    def __lt__(self, other: DispyJob) -> bool:
        return self._seq < other._seq

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, DispyJob):
            return NotImplemented
        return self._seq == other._seq and self._cluster == other._cluster

    def __hash__(self) -> int:
        return hash((self._cluster, self._seq))

    def __repr__(self) -> str:
        return f"<DispyJob {self.id!r}: {STATUS_NAMES.get(self.status, self.status)}>"


def _open(gate: threading.Lock) -> None:
    """Let the next one through, if the gate isn't open by now."""
    with suppress(RuntimeError):
        gate.release()


def forget() -> None:
    """In a forked child: the clusters are the parent's, and so may be the lock."""
    global _EVENT_LOCK
    _EVENT_LOCK = threading.Lock()
    _ORPHANS.update(OWNERS)
    OWNERS.clear()


class ProvisionalJob(DispyJob):
    """A job as it was when it sent a provisional result, for callbacks.

    The job itself may end at any moment, and callbacks look at it more than once. The two are
    equal, and to wait for one is to wait for the other.
    """

    __slots__ = ("_job",)

    def __init__(self, job: DispyJob, result: object) -> None:
        for name in DispyJob.__slots__:
            setattr(self, name, getattr(job, name))
        self._job = job
        self.result, self.status = result, DispyJob.ProvisionalResult

    @property
    def finish(self) -> threading.Event:
        """The event of the job itself."""
        return self._job.finish

    def __call__(self, clear: bool = False) -> Any:
        """Wait for the end of the job itself; return its result."""
        return self._job(clear)


STATUS_NAMES = {
    value: name for name, value in vars(DispyJob).items() if name[0].isupper()
}  # for messages


def payload_bytes(spec: JobSpec | JobResult | JobRecord) -> int:
    """How many bytes of payload a job or a result carries."""
    size = len(spec.payload)
    return size + sum([part.size for part in spec.parts]) if spec.parts else size


def explain_end(job: DispyJob) -> str:
    """Say how a job has ended."""
    status = STATUS_NAMES.get(job.status, str(job.status))
    where = f" at {job.host}" if job.host else ""
    why = str(job.exception or "").strip().rpartition("\n")[2]
    return f"job {job.id} is {status}{where}" + (f": {why}" if why else "")


def as_text(output: str | bytes | None) -> str | None:
    """Return what a job has printed as text, also of a program."""
    return output.decode("utf-8", "replace") if isinstance(output, bytes) else output
