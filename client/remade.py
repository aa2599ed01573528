"""Jobs made again from what a recover file and a result say of them.

They look as their cluster would have left them, as far as that is known.
"""

from __future__ import annotations

from typing import Any

from dispy.protocol.messages import JobResult, JobSpec, Large

from . import ledger
from .job import DispyJob
from .log import logger
from .pickling import load
from .recorded import JobEntry, RecordedCluster, id_of

WITHOUT_CLASSES = "results can only be unpickled by a program with the classes of the one that died"


def remake(known: RecordedCluster, result: JobResult, host: str) -> tuple[DispyJob, bool]:
    """Make a job that has ended; False: its result is of no use in this program."""
    entry = known.jobs.get(result.seq)
    args, kwargs = (None, {}) if entry is None else _arguments(entry)
    job_id = None if entry is None else id_of(entry)
    made = DispyJob(known.number, JobSpec(result.seq, 0, b""), job_id, args, kwargs)
    made.submit_time = entry.submit_time if entry is not None else 0.0
    made.host = host or None
    ledger.fill(made, result, binary=known.program)
    if made.status == result.status:
        return made, True
    made.exception = f"{made.exception}\n{WITHOUT_CLASSES}"
    return made, False


def _arguments(entry: JobEntry) -> tuple[Any, dict[str, Any]]:
    """Return a job's args and kwargs; None for the former if they are not to be had."""
    if not entry.payload and not entry.parts:
        return None, {}
    parts = [large(part) for part in entry.parts]
    payload, buffers = (entry.payload, parts) if entry.payload else (entry.parts[0], parts[1:])
    try:
        args, kwargs = load(payload, buffers)[:2]
    except Exception as error:  # the user's classes may not be here, and unpickling runs code
        logger.debug("the arguments of job %d can't be unpickled: %s", entry.seq, error)
        return None, {}
    return args, kwargs


def large(data: bytes) -> Large:
    """Return a payload that travels beside its header."""
    return Large(len(data), [data])
