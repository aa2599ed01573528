"""How jobs end before they end by themselves: cancelled, given up, or after their time limit.

A job that runs is interrupted, then terminated, then killed. Pure.
"""

from __future__ import annotations

from dispy.protocol import payload
from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import CANCELLED, TERMINATED, JobResult
from dispy.protocol.payload import INLINE_BYTES
from dispy.protocol.wire import chunked

from .effects import Destroy, Interrupt, Revoke, Terminate
from .state import NEVER, Cancelling, Computation, Node, Task, Worker

STEP_S = 2.0  # from SIGTERM to SIGKILL
BEFORE = "cancelled before it began"
INTERRUPTED = "the job was cancelled"  # how the job process begins to tell of an interrupt


def end(
    node: Node,
    task: Task,
    status: int,
    reason: str,
    output: tuple[bytes, bytes] = (b"", b""),
    start: float = 0.0,
    now: float = 0.0,
) -> None:
    """Report a job that no job process reports; superseded attempts are not told."""
    computation = task.computation
    if computation.tasks.get(task.spec.seq) is not task:
        return
    forget(node, task)
    result = JobResult(task.spec.seq, task.spec.attempt, status, start, 0.0, b"")
    if start:
        result.end = now + node.wall_offset_s
    _fill(result, payload.pack_result(b"", output[0], output[1], reason))
    node.results.setdefault(computation, []).append(result)


def forget(node: Node, task: Task) -> None:
    """The attempt counts no more, and needs its files no more."""
    del task.computation.tasks[task.spec.seq]
    if task.special is not None and task.special.claim is not None:
        node.fetching.drop(task.special.claim)


def unqueue(task: Task) -> None:
    """It is not to be given to any process."""
    computation = task.computation
    if task in computation.waiting:
        del computation.waiting[task]
    elif task in computation.queue:
        computation.queue.remove(task)


# -- cancelling ------------------------------------------------------------------------------


def cancel(node: Node, task: Task, now: float) -> None:
    """End a job, wherever it is."""
    worker = task.worker
    if worker is None:
        unqueue(task)
        end(node, task, CANCELLED, BEFORE)
    elif worker.tasks[0] is task and len(worker.tasks) == 1:
        interrupt(node, worker, now)
    else:
        revoke(node, worker)  # then we know which of them runs


def give_up(node: Node, task: Task, now: float) -> None:
    """Stop an attempt whose result nobody wants."""
    forget(node, task)
    if task.worker is None:
        unqueue(task)
    elif not task.cancelled:
        task.cancelled = True
        cancel(node, task, now)


def revoke(node: Node, worker: Worker) -> None:
    """Take back what a process has not begun."""
    if not worker.revoking:
        worker.revoking = True
        node.effects.append(Revoke(worker.id))


def interrupt(node: Node, worker: Worker, now: float) -> None:
    """Ask the job to end; what follows if it doesn't is `press`."""
    if worker.cancelling is not Cancelling.NOT:
        return  # it has been asked for another reason
    worker.cancelling = Cancelling.INTERRUPTED
    worker.next_step_at = now + worker.computation.prepare.spec.cancel_grace
    node.wake_at(worker.next_step_at)
    node.effects.append(Interrupt(worker.id))


def press(node: Node, worker: Worker, now: float) -> None:
    """The job has had its time to end by itself."""
    if worker.cancelling is Cancelling.INTERRUPTED:
        worker.cancelling = Cancelling.TERMINATED
        node.effects.append(Terminate(worker.id))
    else:
        worker.cancelling = Cancelling.KILLED
        node.effects.append(Destroy(worker.id))
    worker.next_step_at = now + STEP_S


def calm(worker: Worker) -> None:
    """The job that was to be ended has ended; the worker can go on.

    But not with other jobs when a signal may be on its way that would end them.
    """
    if worker.cancelling in (Cancelling.TERMINATED, Cancelling.KILLED):
        worker.outdated = True
    worker.cancelling = Cancelling.NOT
    worker.next_step_at = NEVER


# -- limits of time --------------------------------------------------------------------------


def limit(node: Node, worker: Worker, now: float) -> None:
    """End the job that runs when its time is over."""
    special = worker.tasks[0].special
    if special is None or not special.limit_s or special.overdue:
        return
    until = worker.head_since + special.limit_s
    if now >= until:
        special.overdue = True
        interrupt(node, worker, now)
    else:
        node.wake_at(until)


def why_ended(task: Task) -> str:
    """Say that the job ran too long, or until too late; nothing, if it didn't."""
    special = task.special
    if special is None or not special.overdue:
        return "" if special is None else special.off_duty
    return f"ran longer than its limit of {special.limit_s:g} s"


def settle(task: Task, result: JobResult) -> None:
    """A special job has ended: if it was interrupted for the time, its result says so.

    One that has returned nevertheless has made good use of its grace.
    """
    reason = why_ended(task)
    if not reason or result.status != TERMINATED:
        return
    try:
        body = payload.unpack_result(result.payload or result.parts[0].tobytes())
    except (ProtocolError, IndexError) as error:  # nonsense of a job process
        _fill(result, payload.pack_result(b"", b"", b"", f"{reason}; {error}"))
        return
    where = body.exception
    if where.startswith(INTERRUPTED):
        where = where.partition("\n")[2]
    text = f"{reason}\n{where}" if where else reason
    _fill(result, payload.pack_result(b"", body.stdout, body.stderr, text))


def _fill(result: JobResult, body: bytes) -> None:
    """Put a body into a result, beside the header when it's long."""
    if len(body) < INLINE_BYTES:
        result.payload, result.parts = body, []
        return
    result.payload, result.parts = b"", [chunked(body)]


def take_out(computation: Computation) -> list[Task]:
    """Remove all tasks that have no process, and return them."""
    tasks = [*computation.waiting, *computation.queue]
    computation.waiting.clear()
    computation.queue.clear()
    return tasks
