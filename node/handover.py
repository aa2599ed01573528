"""Which job goes to which job process, and when processes are forked.

A free CPU gets a job at once, and short jobs go in batches to processes that are reused. When
several computations have jobs, they share the CPUs by time and weight: the one with the lowest
*tag* is next, which is the CPU time that it has had while there were others, over its weight
(start-time fair queueing; see the broker's `sharing` for the source). Who comes anew begins where
the others are. A job that runs is never interrupted for another computation's sake. Pure.
"""

from __future__ import annotations

import heapq
import math

from dispy.protocol.messages import CANCELLED

from . import endings
from .effects import Give, Retire, Spawn
from .state import Computation, Node, Stage, Task, Worker

HAND_OVER_S = 0.004  # a job process is given so many seconds of work at once
HAND_OVER_MAX = 256  # ... and so many jobs
FRESH_S, REUSED_S = 0.001, 1e-6  # what a process takes for a job beside the job itself
AHEAD_S = 0.015  # a process that runs shorter jobs has its next one already
BLOCKED_S = 0.03  # a job that runs so long loses what was handed over behind it
SPAWN_PAUSE_S = 0.1  # after a job process could not be started; doubles
SPAWN_PAUSE_MAX_S = 2.0
SLICE_S = 0.02  # a process that is reused stays at work for so long while others wait
WEIGHT_MIN, WEIGHT_MAX = 1e-6, 1e6

# -- jobs to processes -----------------------------------------------------------------------


def take_turns(node: Node, computation: Computation) -> None:
    """The computation has jobs to give."""
    if computation.queue and not computation.in_turns:
        computation.in_turns = True
        computation.tag = max(computation.tag, node.clock)
        node.turns.append(computation)


def assign(node: Node, now: float) -> None:
    """Give free CPUs jobs, computations taking turns; then fill up what runs short."""
    _leave_out(node)
    if len(node.turns) < 2:
        node.charged_at = None
        if node.turns:
            while node.busy < node.cpus and node.turns[0].queue:
                if not _start_one(node, node.turns[0], now):
                    break
            _top_up(node, node.turns[0], now)
        return
    if node.charged_at is None:
        _clear_the_way(node)
    _charge(node, now)
    _start_in_turn(node, now)
    for computation in _going_on(node):
        _top_up(node, computation, now)


def _clear_the_way(node: Node) -> None:
    """Others want the CPUs from now on: of longer jobs none is ahead of theirs."""
    for worker in node.workers.values():
        if len(worker.tasks) > 1 and _batch(worker.computation) == 1:
            endings.revoke(node, worker)


def _leave_out(node: Node) -> None:
    """Computations without a queue have no turns."""
    for computation in [each for each in node.turns if not each.queue]:
        computation.in_turns = False
        node.turns.remove(computation)


def _per(computation: Computation) -> float:
    """Return what a second of CPU time costs it: one over its weight."""
    weight = computation.prepare.weight
    return 1.0 / (min(max(weight, WEIGHT_MIN), WEIGHT_MAX) if math.isfinite(weight) else 1.0)


def _charge(node: Node, now: float) -> None:
    """Count the CPU time that computations have had since several want it."""
    spent_s = 0.0 if node.charged_at is None else now - node.charged_at
    node.charged_at = now
    if spent_s > 0:
        for worker in node.workers.values():
            if worker.tasks:
                worker.computation.tag += spent_s * _per(worker.computation)


def _start_in_turn(node: Node, now: float) -> None:
    """Put free CPUs to work for those who have had least; at first, for each in turn."""
    if node.busy >= node.cpus:
        return
    running: dict[Computation, int] = {}
    for worker in node.workers.values():
        if worker.tasks:
            running[worker.computation] = running.get(worker.computation, 0) + 1
    order = []
    for number, computation in enumerate(node.turns):
        ahead = SLICE_S * running.get(computation, 0) * _per(computation)
        order.append((computation.tag + ahead, number, computation))
    heapq.heapify(order)
    while order and node.busy < node.cpus:
        key, number, computation = order[0]
        if not computation.queue or not _start_one(node, computation, now):
            heapq.heappop(order)
            continue
        node.clock = max(node.clock, computation.tag)
        heapq.heapreplace(order, (key + SLICE_S * _per(computation), number, computation))


def _going_on(node: Node) -> list[Computation]:
    """Return those whose processes get more at once; others' run dry and leave their CPUs."""
    waiting = [each for each in node.turns if each.queue]
    lowest = heapq.nsmallest(2, [each.tag for each in waiting])
    going: list[Computation] = []
    for computation in waiting if len(lowest) == 2 else ():
        other = lowest[1] if computation.tag == lowest[0] else lowest[0]
        if computation.tag <= other + SLICE_S * _per(computation):
            going.append(computation)
    return going if len(lowest) == 2 else waiting


def take_back(node: Node, worker: Worker, count: int) -> None:
    """The worker will not begin its last tasks: queue them again, ahead of the others."""
    computation = worker.computation
    back = [worker.tasks.pop() for _ in range(min(count, len(worker.tasks)))]
    worker.given -= len(back)
    for task in back:
        task.worker = None
        if task.special is not None:
            task.special.overdue = False
        if computation.tasks.get(task.spec.seq) is not task:
            continue  # given up
        if task.cancelled:
            endings.end(node, task, CANCELLED, endings.BEFORE)
        else:
            computation.queue.appendleft(task)
    take_turns(node, computation)


def _start_one(node: Node, computation: Computation, now: float) -> bool:
    """Put one more CPU to work for the computation."""
    if computation.stage is not Stage.READY or _uses_its_cpus(node, computation):
        return False
    if not computation.spares and not _spawn(node, computation, now):
        return False
    worker = computation.spares.popleft()
    free = node.cpus - node.busy
    node.busy += 1
    fair = -(-len(computation.queue) // free)
    _give(node, worker, min(fair, _batch(computation)), now)
    return True


def _cpus_for(node: Node, computation: Computation) -> int:
    return min(node.cpus, computation.cpus or node.cpus)


def _uses_its_cpus(node: Node, computation: Computation) -> bool:
    """Whether the computation runs as many jobs as its cluster asked for."""
    cpus = _cpus_for(node, computation)
    if cpus == node.cpus:
        return False
    return sum(bool(worker.tasks) for worker in computation.workers.values()) >= cpus


def _top_up(node: Node, computation: Computation, now: float) -> None:
    """Short jobs are handed over in batches, so that no process waits for the next."""
    busy, cpus = 0, _cpus_for(node, computation)
    batch = _batch(computation) if len(node.turns) > 1 else _with_one_ahead(computation, cpus)
    if batch == 1:
        return
    for worker in computation.workers.values():
        busy += bool(worker.tasks)
        if not computation.queue or busy > cpus:
            return  # it has more CPUs than it may use now: let them run dry
        short = 0 < len(worker.tasks) <= batch // 2 and not worker.spent
        if computation.has_special and short:
            short = worker.tasks[0].special is None and computation.queue[0].special is None
        if short and now < worker.head_since + BLOCKED_S / 2:
            fair = -(-len(computation.queue) // node.cpus)
            _give(node, worker, min(fair, batch - len(worker.tasks)), now)


def _batch(computation: Computation) -> int:
    """How many jobs make up a hand-over."""
    if computation.run_s < 0:
        return 1
    own_s = FRESH_S if computation.is_fresh else REUSED_S
    return 1 + min(int(HAND_OVER_S / (computation.run_s + own_s)), HAND_OVER_MAX - 1)


def _with_one_ahead(computation: Computation, cpus: int) -> int:
    """How many jobs a process may have, counting the one that it is to begin next.

    For one that is the only one with jobs. Of longer jobs, the last that are fewer than the CPUs
    stay in the queue, for whichever process is free first.
    """
    batch = _batch(computation)
    is_short = 0 <= computation.run_s < AHEAD_S
    return 2 if batch == 1 and is_short and len(computation.queue) >= cpus else batch


def _give(node: Node, worker: Worker, count: int, now: float) -> None:
    if worker.max_tasks:
        count = min(count, worker.max_tasks - worker.given)
    tasks = _next_tasks(worker.computation, count)
    if not worker.tasks:
        worker.head_since = node.youngest = now
    for task in tasks:
        task.worker = worker
    worker.tasks.extend(tasks)
    worker.given += len(tasks)
    if tasks[0].special is not None:
        endings.limit(node, worker, now)
    node.effects.append(Give(worker.id, [task.spec for task in tasks]))


def _next_tasks(computation: Computation, count: int) -> list[Task]:
    """Take tasks from the queue; a special one alone."""
    queue = computation.queue
    count = min(count, len(queue))
    if not computation.has_special:
        return [queue.popleft() for _ in range(count)]
    tasks = [queue.popleft()]
    while len(tasks) < count and tasks[0].special is None and queue[0].special is None:
        tasks.append(queue.popleft())
    return tasks


# -- processes -------------------------------------------------------------------------------


def keep_spares(node: Node, computation: Computation, now: float) -> None:
    """Fork ahead of need, so that no job waits for a fork."""
    missing = _cpus_for(node, computation) - len(computation.workers)
    while missing > 0 and _spawn(node, computation, now):
        missing -= 1


def pause_spawning(node: Node, computation: Computation, now: float) -> None:
    """A process could not be started: don't try again at once."""
    pause = max(SPAWN_PAUSE_S, min(computation.spawn_pause_s * 2, SPAWN_PAUSE_MAX_S))
    computation.spawn_pause_s = pause
    computation.spawn_at = now + pause
    node.wake_at(computation.spawn_at)


def outdate(node: Node, computation: Computation) -> None:
    """There is new code: only processes that are forked from now on get jobs."""
    for worker in computation.workers.values():
        worker.outdated = True
    for worker in computation.spares:
        node.effects.append(Retire(worker.id))
    computation.spares.clear()


def idle(node: Node, worker: Worker) -> None:
    """The worker has nothing left to do."""
    node.busy -= 1
    worker.computation.spawn_pause_s = 0.0
    rest(node, worker)


def rest(node: Node, worker: Worker) -> None:
    """The worker may be given something again, if it isn't spent."""
    if worker.computation.stage is not Stage.READY or worker.revoking:
        return
    if worker.outdated and not worker.used_up:
        node.effects.append(Retire(worker.id))
    elif not worker.spent:
        worker.computation.spares.append(worker)


def lose(node: Node, worker: Worker) -> None:
    """The worker is dead, and its tasks have been seen to."""
    computation = worker.computation
    del node.workers[worker.id], computation.workers[worker.id]
    if worker in computation.spares:
        computation.spares.remove(worker)


def _spawn(node: Node, computation: Computation, now: float) -> bool:
    if now < computation.spawn_at or computation.stage is not Stage.READY:
        return False
    node.last_worker += 1
    worker = Worker(node.last_worker, computation, computation.max_tasks)
    node.workers[worker.id] = computation.workers[worker.id] = worker
    computation.spares.append(worker)
    max_tasks = 1 if computation.is_fresh else computation.max_tasks
    node.effects.append(Spawn(computation.id, worker.id, max_tasks))
    return True
