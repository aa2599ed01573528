"""What job processes report: results, records, what they have not begun, their end. Pure."""

from __future__ import annotations

from dispy.protocol.messages import TERMINATED, JobRecord, JobResult, Records

from . import endings, handover
from .effects import FollowOutput
from .state import Computation, Node, Task, Worker
from .telling import send

FALSE_STARTS_MAX = 3  # job processes that may die in a row before they begin a job
SMOOTHING = 0.3
LONG_S = 1e9  # what a job process says of its times may be no number at all


def records(node: Node, worker: Worker, said: list[JobRecord]) -> None:
    """Pass on what jobs have to say, while their attempts count."""
    tasks = worker.computation.tasks
    told = [record for record in said if _runs(tasks.get(record.seq), worker, record)]
    if told:
        send(node, Records(worker.computation.id, told))


def outcomes(node: Node, worker: Worker, results: list[JobResult], now: float) -> None:
    """Jobs have ended, in the order in which they were given."""
    computation = worker.computation
    was_busy = bool(worker.tasks)
    taken: list[JobResult] = []
    for result in results:
        if not worker.tasks or not _is_of(result, worker.tasks[0]):
            continue  # told twice: by itself, and by what it left when it died
        task = worker.tasks.popleft()
        worker.ended += 1
        if computation.tasks.get(result.seq) is task:
            if task.special is None:
                del computation.tasks[result.seq]
            else:
                endings.forget(node, task)
                endings.settle(task, result)
            taken.append(result)
    if taken:
        node.results.setdefault(computation, []).extend(taken)
        _measure(computation, taken)
    worker.head_since = node.youngest = now
    endings.calm(worker)
    if was_busy and not worker.tasks:
        handover.idle(node, worker)
    elif worker.tasks and not worker.revoking:
        _resume(node, worker, now)  # what came for the one that is now the first


def _measure(computation: Computation, results: list[JobResult]) -> None:
    mean = sum([result.end - result.start for result in results]) / len(results)
    mean = min(max(0.0, mean), LONG_S)
    if computation.run_s < 0:
        computation.run_s = mean
    else:
        computation.run_s += SMOOTHING * (mean - computation.run_s)


def revoked(node: Node, worker: Worker, count: int, now: float) -> None:
    """The process will not begin the last ``count`` jobs that it was given."""
    worker.revoking = False
    was_busy = bool(worker.tasks)
    handover.take_back(node, worker, count)
    if worker.tasks:
        _resume(node, worker, now)
    elif was_busy:
        handover.idle(node, worker)
    else:
        handover.rest(node, worker)


def _resume(node: Node, worker: Worker, now: float) -> None:
    """What is left to a process after a revocation runs, or has run."""
    if worker.tasks[0].cancelled:
        endings.interrupt(node, worker, now)
    for task in worker.tasks if worker.computation.has_special else ():
        if task.special is not None and task.special.follow:
            task.special.follow = False
            node.effects.append(FollowOutput(worker.id, task.spec.seq, task.spec.attempt))


def exited(
    node: Node, worker: Worker, started: int, reason: str, output: tuple[bytes, bytes], now: float
) -> None:
    """A process is dead. It had begun ``started`` of the jobs it was given."""
    computation = worker.computation
    node.busy -= bool(worker.tasks)
    begun = [worker.tasks.popleft() for _ in range(min(started - worker.ended, len(worker.tasks)))]
    for task in begun:  # several: of a lane that was killed just when one had followed another
        start = worker.head_since + node.wall_offset_s
        cause = "cancelled" if task.cancelled else endings.why_ended(task)
        why = f"{cause}; {reason}" if cause else reason
        endings.end(node, task, TERMINATED, why, output, start, now)
    if not begun and not worker.ended:  # else it was able to start
        for task in worker.tasks:
            task.false_starts += 1
    hopeless = [task for task in worker.tasks if task.false_starts >= FALSE_STARTS_MAX]
    if started == 0 and not worker.outdated:
        handover.pause_spawning(node, computation, now)
    handover.take_back(node, worker, len(worker.tasks))
    for task in hopeless:
        if computation.tasks.get(task.spec.seq) is task:
            endings.unqueue(task)
            endings.end(node, task, TERMINATED, f"no job process could start: {reason}")
    handover.lose(node, worker)


def _is_of(result: JobResult, task: Task) -> bool:
    return result.seq == task.spec.seq and result.attempt == task.spec.attempt


def _runs(task: Task | None, worker: Worker, record: JobRecord) -> bool:
    """Whether this process still has the attempt that a record is of."""
    return task is not None and task.worker is worker and task.spec.attempt == record.attempt
