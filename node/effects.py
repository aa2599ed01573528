"""What the agent wants done; its shell does it."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

from dispy.protocol.messages import Body, JobSpec, Prepare


class Send(NamedTuple):
    """Send a message to the broker."""

    peer: str
    message: Body


class Goodbye(NamedTuple):
    """End the session with a broker."""

    peer: str
    reason: str


class StartTemplate(NamedTuple):
    """Fork a process that loads the computation and then forks its job processes."""

    computation: int
    prepare: Prepare


class StopTemplate(NamedTuple):
    """End a computation's template, all its job processes and whatever they left."""

    computation: int


class Spawn(NamedTuple):
    """Fork a job process; it takes ``max_tasks`` jobs (0: any number)."""

    computation: int
    worker: int
    max_tasks: int


class Give(NamedTuple):
    """Hand jobs to a job process; it runs them in this order."""

    worker: int
    jobs: list[JobSpec]


class Revoke(NamedTuple):
    """Take back what the job process has not begun; answered by `Agent.revoked`."""

    worker: int


class Interrupt(NamedTuple):
    """SIGINT to the job process and its children."""

    worker: int


class Terminate(NamedTuple):
    """SIGTERM to the job process and its children."""

    worker: int


class Destroy(NamedTuple):
    """SIGKILL to the job process and its children."""

    worker: int


Effect: TypeAlias = (
    Send
    | Goodbye
    | StartTemplate
    | StopTemplate
    | Spawn
    | Give
    | Revoke
    | Interrupt
    | Terminate
    | Destroy
)
