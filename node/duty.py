"""Whether the node takes jobs now: by the time of day, and by how many clusters it has served.

While it takes none, what has not begun goes back at once; when its service has ended, what runs
is ended as well. Computations stay set up, and the node stays registered. Pure.
"""

from __future__ import annotations

from dispy.protocol.messages import Returned, Service

from . import endings
from .effects import TellTime
from .service import Phase
from .state import NEVER, Cancelling, Node, Special, Task, Worker
from .telling import send

LOOK_S = 60.0  # clocks on the wall are changed now and then


# -- the time of day -------------------------------------------------------------------------


def tick(node: Node, now: float) -> None:
    """Ask for the time of day when it may have come to something."""
    duty = node.duty
    if duty.hours is None:
        return
    if now >= duty.look_at:
        duty.look_at = NEVER  # until it has been told
        node.effects.append(TellTime())
    node.wake_at(duty.look_at)


def told(node: Node, time_s: float, now: float) -> None:
    """It is so many seconds after midnight."""
    duty = node.duty
    assert duty.hours is not None
    duty.look_at = now + min(LOOK_S, duty.hours.until_change(time_s))
    node.wake_at(duty.look_at)
    phase = duty.hours.phase(time_s)
    if phase is not duty.phase:
        duty.phase = phase
        send(node, Service(phase is Phase.OPEN, duty.hours.reason(phase)))
        if phase is not Phase.OPEN:
            _revoke_all(node)


def _revoke_all(node: Node) -> None:
    """Take back what processes were handed over ahead."""
    for worker in node.workers.values():
        if len(worker.tasks) > 1:
            endings.revoke(node, worker)


def introduce(node: Node) -> None:
    """A broker has been told what is here: tell it, too, that it can give nothing now."""
    duty = node.duty
    if duty.hours is not None and duty.phase is not Phase.OPEN:
        send(node, Service(False, duty.hours.reason(duty.phase)))


# -- jobs while the node takes none ----------------------------------------------------------


def settle(node: Node, now: float) -> None:
    """Give back what has not begun; when the service has ended, end what has."""
    duty = node.duty
    if duty.hours is None or duty.phase is Phase.OPEN:
        return
    for computation in node.computations.values():
        back = endings.take_out(computation)
        for task in back:
            endings.forget(node, task)
        if back:
            jobs = [(task.spec.seq, task.spec.attempt) for task in back]
            send(node, Returned(computation.id, jobs))
        for worker in computation.workers.values() if duty.phase is Phase.ENDED else ():
            if len(worker.tasks) == 1:  # else results are on the way
                _end(node, worker, duty.hours.ending(), now)


def _end(node: Node, worker: Worker, reason: str, now: float) -> None:
    """End the only job of a process, unless it is being ended or taken back already."""
    if worker.revoking or worker.cancelling is not Cancelling.NOT:
        return
    task: Task = worker.tasks[0]
    task.special = task.special or Special()
    task.computation.has_special = True
    task.special.off_duty = reason
    endings.interrupt(node, worker, now)


# -- a number of clusters ---------------------------------------------------------------------


def refusal(node: Node, computation: int) -> str:
    """Say why a computation can't come any more; else count it, and return nothing.

    One that is set up anew counts once.
    """
    duty = node.duty
    if duty.serves < 0 or (node.broker, computation) in duty.served:
        return ""
    if len(duty.served) >= duty.serves:
        what = "one cluster" if duty.serves == 1 else f"{duty.serves} clusters"
        return f"the node was started to serve {what}, and has done so"
    duty.served.add((node.broker, computation))
    return ""


def is_over(node: Node) -> bool:
    """Whether all clusters that the node was to serve have come, and none comes again."""
    return 0 <= node.duty.serves <= len(node.duty.served) and not node.kept
