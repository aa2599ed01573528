"""Which job goes to which job process, and when processes are forked.

Computations take turns, a free CPU gets a job at once, and short jobs go in batches to
processes that are reused. Pure.
"""

from __future__ import annotations

from dispy.protocol.messages import CANCELLED

from . import endings
from .effects import Give, Retire, Spawn
from .state import Computation, Node, Stage, Task, Worker

HAND_OVER_S = 0.004  # a job process is given so many seconds of work at once
HAND_OVER_MAX = 256  # ... and so many jobs
BLOCKED_S = 0.03  # a job that runs so long loses what was handed over behind it
SPARES_PER_CPU = 3  # fresh processes ahead of need while many jobs wait
SPAWN_PAUSE_S = 0.1  # after a job process could not be started; doubles
SPAWN_PAUSE_MAX_S = 2.0

# -- jobs to processes -----------------------------------------------------------------------


def take_turns(node: Node, computation: Computation) -> None:
    """The computation has jobs to give."""
    if computation.queue and computation not in node.turns:
        node.turns.append(computation)


def assign(node: Node, now: float) -> None:
    """Give free CPUs jobs, computations taking turns; then fill up what runs short."""
    stuck = 0
    while stuck < len(node.turns) and node.busy < node.cpus:
        computation = node.turns[0]
        node.turns.rotate(-1)
        if not computation.queue:
            node.turns.remove(computation)
        elif _start_one(node, computation, now):
            stuck = 0
        else:
            stuck += 1
    for computation in list(node.turns):
        if computation.queue and computation.max_tasks != 1:
            _top_up(node, computation, now)


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
    batch = _batch(computation)
    if batch == 1:
        return
    busy, cpus = 0, _cpus_for(node, computation)
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
    if computation.max_tasks == 1 or computation.run_s < 0:
        return 1
    return 1 + min(int(HAND_OVER_S / (computation.run_s + 1e-6)), HAND_OVER_MAX - 1)


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
    """Fork ahead of need, so that no job waits for a fork; several at once under load."""
    if computation.max_tasks == 1:
        wanted = _cpus_for(node, computation)
        if len(computation.queue) > SPARES_PER_CPU * wanted:
            wanted *= SPARES_PER_CPU
        missing = wanted - len(computation.spares)
        if missing < wanted // 2:
            return
    else:
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
    node.effects.append(Spawn(computation.id, worker.id, worker.max_tasks))
    return True
