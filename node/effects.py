"""What the agent wants done; its shell does it."""

from __future__ import annotations

from typing import NamedTuple, TypeAlias

import msgspec

from dispy.protocol.fetching import DropBlob as DropBlob
from dispy.protocol.fetching import KeepPiece as KeepPiece
from dispy.protocol.messages import Body, Code, FileSpec, JobSpec, Prepare


class Send(msgspec.Struct, frozen=True):
    """Send a message to a broker."""

    peer: str
    message: Body


class Goodbye(NamedTuple):
    """End the session with a broker.

    ``keep``: hand what it has not acknowledged to `Agent.kept_for`.
    """

    peer: str
    reason: str
    keep: bool = False


class Leave(NamedTuple):
    """Stop the node: a computation asked for it, or it has served enough; all are gone."""


class TellTime(NamedTuple):
    """Look at the clock; answered by `Agent.time_told`."""


class Measure(NamedTuple):
    """Look at what the node has to spare; answered by `Agent.measured`."""


class StartTemplate(NamedTuple):
    """Fork a process that loads the computation and then forks its job processes."""

    prepare: Prepare


class DefineLayers(NamedTuple):
    """Load more layers of code; job processes that are forked from now on know them."""

    computation: int
    layers: list[Code]


class ClearFiles(NamedTuple):
    """Remove the files that a computation has left when it ended; nothing answers."""

    computation: int


class StopTemplate(NamedTuple):
    """End a computation's template, all its job processes and whatever they left.

    ``keep``: its files stay.
    """

    computation: int
    keep: bool = False


class Put(NamedTuple):
    """Copy a file from the store to the computation; answered by `Agent.file_placed`."""

    computation: int
    request: int
    file: FileSpec


class Spawn(NamedTuple):
    """Fork a job process; it takes ``max_tasks`` jobs (0: any number).

    1: any number too, but it runs each in a fresh process of its own.
    """

    computation: int
    worker: int
    max_tasks: int


class Give(NamedTuple):
    """Hand jobs to a job process; it runs them in this order."""

    worker: int
    jobs: list[JobSpec]


class Retire(NamedTuple):
    """End a job process that has no jobs, and is to have no more."""

    worker: int


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


class Acknowledge(NamedTuple):
    """Tell a job process that the client has dealt with its records up to ``number``."""

    worker: int
    seq: int
    attempt: int
    number: int
    error: str


class FollowOutput(NamedTuple):
    """Tell from now on what an attempt prints."""

    worker: int
    seq: int
    attempt: int


Effect: TypeAlias = (
    Send
    | Goodbye
    | Leave
    | TellTime
    | Measure
    | KeepPiece
    | DropBlob
    | StartTemplate
    | DefineLayers
    | StopTemplate
    | ClearFiles
    | Put
    | Spawn
    | Give
    | Retire
    | Revoke
    | Interrupt
    | Terminate
    | Destroy
    | Acknowledge
    | FollowOutput
)

# The agent is told at once what has come of these; of the others by an event, or not at all.
ANSWERED = frozenset({Revoke, KeepPiece, Goodbye, Measure, TellTime})
