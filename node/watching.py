"""What is looked at as time passes: jobs that run for long, and those that must end. Pure."""

from __future__ import annotations

from dispy.protocol.messages import Started

from . import endings, setups
from .handover import BLOCKED_S
from .state import Computation, Node, Worker
from .telling import send

LONG_S = 0.05  # jobs that have run so long are reported as running
TICK_S = 0.02  # how often jobs that have not run for long are looked at


def look_at(node: Node, computation: Computation, now: float) -> None:
    """Report long jobs, free what waits behind them, press on with ending others."""
    started = [
        _announce(node, worker, now)
        for worker in computation.workers.values()
        if worker.tasks and _look_at_worker(node, worker, now)
    ]
    if started:
        send(node, Started(computation.id, started))
    if computation.queue and computation.spawn_at > now:
        node.wake_at(computation.spawn_at)
    setups.limit(node, computation, now)


def look_again(node: Node, now: float) -> None:
    """Look at young jobs often; those that run for long need no more attention."""
    if node.busy and now < node.youngest + LONG_S + TICK_S:
        node.wake_at(now + TICK_S)


def _look_at_worker(node: Node, worker: Worker, now: float) -> bool:
    """Whether the worker's job is to be reported as running."""
    if now >= worker.next_step_at:
        endings.press(node, worker, now)
    endings.limit(node, worker, now)
    node.wake_at(worker.next_step_at)
    running_s = now - worker.head_since
    if running_s >= BLOCKED_S and len(worker.tasks) > 1:
        endings.revoke(node, worker)
    return running_s >= LONG_S and not worker.tasks[0].announced


def announce_again(computation: Computation) -> None:
    """Have running jobs reported once more: a broker that was started anew doesn't know of them."""
    for worker in computation.workers.values():
        if worker.tasks:
            worker.tasks[0].announced = False


def _announce(node: Node, worker: Worker, now: float) -> tuple[int, int, float]:
    task = worker.tasks[0]
    task.announced = True
    return (task.spec.seq, task.spec.attempt, worker.head_since + node.wall_offset_s)
