"""What the broker wants done with the jobs of a node: run, give back, end, follow them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from dispy.protocol.messages import (
    FilePut,
    Follow,
    Inventory,
    JobOptions,
    Kill,
    PutFile,
    RecordsHeard,
    Returned,
    Run,
    Withdraw,
)

from . import endings, files, handover
from .effects import Acknowledge, FollowOutput
from .state import Computation, Node, Special, Stage, Task
from .telling import send

GONE = "the computation is not at this node (any more)"


def _known(node: Node, number: int) -> Computation | None:
    computation = node.computations.get(number)
    if computation is None or computation.stage is Stage.RELEASING:
        return None
    return computation


def _tasks(node: Node, number: int, attempts: Sequence[tuple[int, int]]) -> list[Task]:
    """Return the tasks of a computation that are here as these attempts (seq, attempt)."""
    computation = _known(node, number)
    tasks = {} if computation is None else computation.tasks
    found = [(tasks.get(seq), attempt) for seq, attempt in attempts]
    return [task for task, attempt in found if task is not None and task.spec.attempt == attempt]


def _on_run(node: Node, message: Run, now: float) -> None:
    computation = _known(node, message.computation)
    if computation is None:
        return  # released meanwhile; the broker has ended its jobs
    tasks, queue = computation.tasks, computation.queue
    for spec in message.jobs:
        known = tasks.get(spec.seq)
        if known is not None:
            if known.spec.attempt >= spec.attempt:
                continue
            endings.give_up(node, known, now)  # a later attempt: nobody waits for it
        tasks[spec.seq] = task = Task(spec, computation)
        if spec.options is None or _take_options(node, task, spec.options):
            queue.append(task)
    handover.take_turns(node, computation)


def _take_options(node: Node, task: Task, options: JobOptions) -> bool:
    """Look at what a job asks for; return whether it can be given to a process now."""
    if not (options.timeout > 0 or options.follow or options.files):
        return True
    computation = task.computation
    computation.has_special = True
    task.special = Special(max(0.0, options.timeout))
    if not options.files:
        return True
    return files.claim_for_job(node, task, task.special, options.files)


def _on_withdraw(node: Node, message: Withdraw, now: float) -> None:
    computation = _known(node, message.computation)
    back: list[Task] = []
    if computation is not None:
        while computation.queue and len(back) < message.count:
            back.append(computation.queue.pop())
        while computation.waiting and len(back) < message.count:
            back.append(computation.waiting.popitem()[0])
    for task in back:
        endings.forget(node, task)
    returned = [(task.spec.seq, task.spec.attempt) for task in reversed(back)]
    send(node, Returned(message.computation, returned))


def _on_kill(node: Node, message: Kill, now: float) -> None:
    for task in _tasks(node, message.computation, message.jobs):
        if not task.cancelled:
            task.cancelled = True
            endings.cancel(node, task, now)


def _on_inventory(node: Node, message: Inventory, now: float) -> None:
    wanted = set(message.jobs)
    for computation in node.computations.values():
        for task in list(computation.tasks.values()):
            if (computation.id, task.spec.seq, task.spec.attempt) not in wanted:
                endings.give_up(node, task, now)


def _on_follow(node: Node, message: Follow, now: float) -> None:
    for task in _tasks(node, message.computation, message.jobs):
        _follow(node, task)


def _follow(node: Node, task: Task) -> None:
    options = task.spec.options
    task.spec.options = options = JobOptions() if options is None else options
    options.follow = True  # for the process that gets it, or gets it after a revocation
    task.special = task.special or Special()
    task.computation.has_special = True
    worker = task.worker
    if worker is None:
        return
    if len(worker.tasks) == 1:
        node.effects.append(FollowOutput(worker.id, task.spec.seq, task.spec.attempt))
    else:
        task.special.follow = True
        endings.revoke(node, worker)  # then we know whether it runs


def _on_put_file(node: Node, message: PutFile, now: float) -> None:
    computation = _known(node, message.computation)
    if computation is None:
        send(node, FilePut(message.computation, message.request, GONE))
    else:
        files.claim_for_put(node, computation, message)


def _on_records_heard(node: Node, message: RecordsHeard, now: float) -> None:
    computation = _known(node, message.cluster)
    for heard in message.jobs if computation is not None else ():
        task = computation.tasks.get(heard.seq) if computation is not None else None
        if task is None or task.worker is None or task.spec.attempt != heard.attempt:
            continue
        where = (task.worker.id, heard.seq, heard.attempt)
        node.effects.append(Acknowledge(*where, heard.number, heard.error))


HANDLERS: dict[type[Any], Callable[[Node, Any, float], None]] = {
    Run: _on_run,
    Withdraw: _on_withdraw,
    Kill: _on_kill,
    Inventory: _on_inventory,
    Follow: _on_follow,
    PutFile: _on_put_file,
    RecordsHeard: _on_records_heard,
}
