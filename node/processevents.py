"""What the launcher and its workers tell the node's loop: what has become of the processes."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from dispy.protocol.messages import JobRecord, JobResult


class TemplateReady(NamedTuple):
    """The computation's function is loaded; job processes can be spawned."""

    computation: int


class TemplateFailed(NamedTuple):
    """The function can't be loaded, or the template has died; nothing is left of it."""

    computation: int
    reason: str


class TemplateGone(NamedTuple):
    """After `release`: no process and no file is left of the computation."""

    computation: int


class Outcomes(NamedTuple):
    """Jobs that have ended, in the order in which they were given to the worker."""

    worker: int
    results: list[JobResult]


class Recorded(NamedTuple):
    """What a running job has said, in order, also among the `Outcomes` of its worker."""

    worker: int
    records: list[JobRecord]


class LayerFailed(NamedTuple):
    """A later layer of code can't be loaded; jobs that need it will fail."""

    computation: int
    reason: str


class FilePlaced(NamedTuple):
    """After `put`: the file is there, unless ``error`` says why not."""

    computation: int
    request: int
    error: str


class ShutdownAsked(NamedTuple):
    """The cleanup function of a computation wants the node to stop."""


class WorkerExited(NamedTuple):
    """A job process has ended; comes after all its results.

    Of the jobs given to it ever, without those revoked, it had begun ``started``. When these
    are more than the results that came, then the first without a result ended with the
    process: ``reason`` says how, and it had written ``stdout`` and ``stderr``.
    """

    worker: int
    started: int
    reason: str
    stdout: bytes = b""
    stderr: bytes = b""


class ZygoteLost(NamedTuple):
    """The zygote has died, and with it all templates; the next `prepare` starts another."""


Event: TypeAlias = (
    TemplateReady
    | TemplateFailed
    | TemplateGone
    | Outcomes
    | Recorded
    | LayerFailed
    | FilePlaced
    | ShutdownAsked
    | WorkerExited
    | ZygoteLost
)
