"""The node's state machine: what each CPU does next, and what the broker is told.

It does no I/O and reads no clock. Events come in through the public methods, `flush` hands
work to the job processes and returns all effects since the last call. A node serves one broker
at a time. Only this file changes the state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from dispy.protocol import payload
from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    CANCELLED,
    TERMINATED,
    Body,
    Done,
    Holding,
    Identity,
    Inventory,
    JobResult,
    Kill,
    Prepare,
    Prepared,
    Release,
    Released,
    Returned,
    Run,
    Started,
    Withdraw,
)

from .effects import (
    Destroy,
    Effect,
    Give,
    Goodbye,
    Interrupt,
    Revoke,
    Send,
    Spawn,
    StartTemplate,
    StopTemplate,
    Terminate,
)
from .state import Cancelling, Computation, Stage, Task, Worker

HAND_OVER_S = 0.004  # a job process is given so many seconds of work at once
HAND_OVER_MAX = 256  # ... and so many jobs
HOLD_S = 0.003  # how long a result may wait for others while there is more to do
LONG_S = 0.05  # jobs that have run so long are reported as running
BLOCKED_S = 0.03  # a job that runs so long loses what was handed over behind it
STEP_S = 2.0  # from SIGTERM to SIGKILL
TICK_S = 0.02  # how often jobs that have not run for long are looked at
SPARES_PER_CPU = 3  # fresh processes ahead of need while many jobs wait
FALSE_STARTS_MAX = 3  # job processes that may die in a row before they begin a job
SPAWN_PAUSE_S = 0.1  # after a job process could not be started; doubles
SPAWN_PAUSE_MAX_S = 2.0
LEASE_S = 25.0  # a broker that is away for longer may be replaced by another
KEEP_S = 3600.0  # ... and is given up after so long
SMOOTHING = 0.3


class Agent:
    """Owns every job that the broker has sent until its result is on the way back.

    ``cpus`` jobs run at a time. ``wall_offset_s`` is what turns ``now`` into seconds since
    the epoch. ``check`` asserts all invariants; tests call it after every event.
    """

    def __init__(self, cpus: int, wall_offset_s: float = 0.0) -> None:
        self.cpus = cpus
        self.broker = ""  # the peer that we serve
        self.broker_name = ""
        self.away_since: float | None = None
        self.computations: dict[int, Computation] = {}
        self.workers: dict[int, Worker] = {}
        self._wall_offset_s = wall_offset_s
        self._busy = 0  # workers that have tasks
        self._youngest = 0.0  # when the last job began to run
        self._last_worker = 0
        self._turns: deque[Computation] = deque()  # computations with a queue
        self._effects: list[Effect] = []
        self._results: dict[Computation, list[JobResult]] = {}
        self._held_since: float | None = None  # the oldest of these results
        self._next_tick = float("inf")

    # -- the broker ----------------------------------------------------------------------

    def admit(self, identity: Identity, now: float) -> str:
        """Say why a peer that wants to register is refused; empty: it is welcome."""
        if identity.role != "broker":
            return f"a node takes brokers, not a {identity.role}"
        if self.broker in ("", identity.instance) or not self.computations:
            return ""
        if self.away_since is None:
            return f"this node works for {self.broker_name} at present"
        left_s = self.away_since + LEASE_S - now
        if left_s > 0:
            return f"this node waits {left_s:.0f} s more for {self.broker_name} to come back"
        return ""

    def joined(self, peer: str, identity: Identity, undelivered: list[Body], now: float) -> None:
        """A broker has registered: tell it what is here, first what it may not know yet."""
        if self.broker and self.broker != peer:
            self._serve_nobody(f"it works for {identity.name} now")
        self.broker, self.broker_name, self.away_since = peer, identity.name, None
        for message in undelivered:
            if isinstance(message, Done):
                self._send(message)
        self._send_results()
        jobs = [
            (computation.id, task.spec.seq, task.spec.attempt)
            for computation in self.computations.values()
            for task in computation.tasks.values()
        ]
        known = [each for each in self.computations.values() if each.stage is not Stage.RELEASING]
        self._send(Holding([computation.id for computation in known], jobs))
        for computation in known:
            if computation.stage is Stage.READY:
                self._send(Prepared(computation.id))

    def away(self, peer: str, now: float) -> None:
        """The broker can't be reached: go on with what is here, and keep the results."""
        if peer == self.broker and self.away_since is None:
            self.away_since = now
            self._next_tick = min(self._next_tick, now + KEEP_S)

    def back(self, peer: str) -> None:
        """The broker can be reached again, and nothing was lost."""
        if peer == self.broker:
            self.away_since = None

    def left(self, peer: str) -> None:
        """The broker has ended the session: nobody wants these results."""
        if peer == self.broker:
            self._serve_nobody("")

    def stop(self) -> None:
        """Give back what has not begun, end the rest, say goodbye."""
        for computation in self.computations.values():
            waiting = [(task.spec.seq, task.spec.attempt) for task in computation.queue]
            self._send(Returned(computation.id, waiting, asked=False))
        self._send_results()
        if self.broker:
            self._effects.append(Goodbye(self.broker, "it was stopped"))
        self.broker = ""
        for computation in list(self.computations.values()):
            self._release(computation)

    def receive(self, peer: str, message: Body, now: float) -> None:
        """Handle a message of the broker; `ProtocolError` if it makes no sense."""
        handler = self.HANDLERS.get(type(message))
        if handler is None:
            raise ProtocolError(f"a node takes no {type(message).__name__}")
        if peer == self.broker:
            handler(self, message, now)

    def _serve_nobody(self, reason: str) -> None:
        old, self.broker, self.away_since = self.broker, "", None
        if reason:
            self._effects.append(Goodbye(old, reason))
        for computation in list(self.computations.values()):
            self._release(computation)

    # -- messages ------------------------------------------------------------------------

    def _on_prepare(self, message: Prepare, now: float) -> None:
        computation = self.computations.get(message.computation)
        if computation is None:
            self.computations[message.computation] = Computation(message.computation, message)
            self._effects.append(StartTemplate(message.computation, message))
        elif computation.stage is Stage.READY:
            self._send(Prepared(message.computation))
        elif computation.stage is Stage.RELEASING:
            computation.again = message  # when the old one is gone

    def _on_run(self, message: Run, now: float) -> None:
        computation = self._known(message.computation)
        if computation is None:
            return  # released meanwhile; the broker has ended its jobs
        tasks, queue = computation.tasks, computation.queue
        for spec in message.jobs:
            known = tasks.get(spec.seq)
            if known is not None:
                if known.spec.attempt >= spec.attempt:
                    continue
                self._give_up(known, now)  # a later attempt: nobody waits for the old one
            tasks[spec.seq] = task = Task(spec, computation)
            queue.append(task)
        self._take_turns(computation)

    def _on_withdraw(self, message: Withdraw, now: float) -> None:
        computation = self._known(message.computation)
        returned: list[tuple[int, int]] = []
        if computation is not None:
            while computation.queue and len(returned) < message.count:
                task = computation.queue.pop()
                del computation.tasks[task.spec.seq]
                returned.append((task.spec.seq, task.spec.attempt))
        returned.reverse()
        self._send(Returned(message.computation, returned))

    def _on_kill(self, message: Kill, now: float) -> None:
        computation = self._known(message.computation)
        if computation is None:
            return
        for seq, attempt in message.jobs:
            task = computation.tasks.get(seq)
            if task is not None and task.spec.attempt == attempt and not task.cancelled:
                task.cancelled = True
                self._cancel(computation, task, now)

    def _on_release(self, message: Release, now: float) -> None:
        computation = self.computations.get(message.computation)
        if computation is None:
            self._send(Released(message.computation))
        else:
            self._release(computation)

    def _on_inventory(self, message: Inventory, now: float) -> None:
        wanted = set(message.jobs)
        for computation in self.computations.values():
            for task in list(computation.tasks.values()):
                if (computation.id, task.spec.seq, task.spec.attempt) not in wanted:
                    self._give_up(task, now)

    def _known(self, number: int) -> Computation | None:
        computation = self.computations.get(number)
        if computation is None or computation.stage is Stage.RELEASING:
            return None
        return computation

    # -- templates and job processes: what the shell reports -----------------------------

    def template_ready(self, number: int) -> None:
        """The computation is loaded; job processes can be forked."""
        computation = self.computations.get(number)
        if computation is not None and computation.stage is Stage.PREPARING:
            computation.stage = Stage.READY
            self._send(Prepared(number))
            self._take_turns(computation)

    def template_failed(self, number: int, reason: str) -> None:
        """The computation can't be loaded, or its template has died."""
        computation = self.computations.get(number)
        if computation is None or computation.stage is Stage.RELEASING:
            return
        for task in computation.queue:  # the broker gives what hasn't begun out again
            del computation.tasks[task.spec.seq]
        computation.queue.clear()
        for task in list(computation.tasks.values()):
            self._end(computation, task, TERMINATED, reason)
        self._send_results()
        self._send(Prepared(number, reason))
        self._release(computation)

    def template_gone(self, number: int) -> None:
        """Nothing is left of the computation."""
        computation = self.computations.pop(number, None)
        if computation is None:
            return
        for worker in list(computation.workers.values()):
            self._forget(worker)
        if computation.again is not None:
            self._on_prepare(computation.again, 0.0)
        else:
            self._send(Released(number))

    def outcomes(self, worker_id: int, results: list[JobResult], now: float) -> None:
        """A job process has reported jobs that ended, in the order in which they were given."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return
        computation = worker.computation
        was_busy = bool(worker.tasks)
        taken: list[JobResult] = []
        for result in results:
            if not worker.tasks or not _is_of(result, worker.tasks[0]):
                continue  # told twice: by itself, and by what it left when it died
            task = worker.tasks.popleft()
            worker.ended += 1
            if computation.tasks.get(result.seq) is task:
                del computation.tasks[result.seq]
                taken.append(result)
        if taken:
            self._results.setdefault(computation, []).extend(taken)
            self._measure(computation, taken)
        worker.head_since = self._youngest = now
        self._calm(worker)
        if was_busy and not worker.tasks:
            self._idle(worker)

    def revoked(self, worker_id: int, count: int, now: float) -> None:
        """The last ``count`` jobs given to a job process will not be begun by it."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return
        worker.revoking = False
        was_busy = bool(worker.tasks)
        self._take_back(worker, count)
        if worker.tasks and worker.tasks[0].cancelled and worker.cancelling is Cancelling.NOT:
            self._interrupt(worker, now)
        elif was_busy and not worker.tasks:
            self._idle(worker)

    def worker_exited(
        self, worker_id: int, started: int, reason: str, output: tuple[bytes, bytes], now: float
    ) -> None:
        """A job process is dead. It had begun ``started`` of the jobs it was given."""
        worker = self.workers.get(worker_id)
        if worker is None:
            return
        computation = worker.computation
        self._busy -= bool(worker.tasks)
        if started > worker.ended and worker.tasks:
            task = worker.tasks.popleft()
            start = worker.head_since + self._wall_offset_s
            if task.cancelled:
                reason = f"cancelled; {reason}"
            self._end(computation, task, TERMINATED, reason, output, start, now)
        else:
            for task in worker.tasks:
                task.false_starts += 1
        hopeless = [task for task in worker.tasks if task.false_starts >= FALSE_STARTS_MAX]
        if started == 0:
            self._pause_spawning(computation, now)
        self._take_back(worker, len(worker.tasks))
        for task in hopeless:
            if computation.tasks.get(task.spec.seq) is task:
                self._unqueue(computation, task)
                self._end(computation, task, TERMINATED, f"no job process could start: {reason}")
        self._forget(worker)

    @property
    def is_busy(self) -> bool:
        """Whether any job runs."""
        return self._busy > 0

    # -- time ----------------------------------------------------------------------------

    def deadline(self) -> float:
        """When `tick` next has something to do."""
        return self._next_tick

    def tick(self, now: float) -> None:
        """Report long jobs, free what waits behind them, press on with cancelling."""
        if now < self._next_tick:
            return
        self._next_tick = float("inf")
        for computation in self.computations.values():
            started = [
                self._announce(worker, now)
                for worker in computation.workers.values()
                if worker.tasks and self._look_at(worker, now)
            ]
            if started and self.broker:
                self._send(Started(computation.id, started))
            if computation.queue and computation.spawn_at > now:
                self._next_tick = min(self._next_tick, computation.spawn_at)
        if self.away_since is not None:
            if now >= self.away_since + KEEP_S:
                self._serve_nobody("it was away for too long")
            else:
                self._next_tick = min(self._next_tick, self.away_since + KEEP_S)
        self._look_again(now)

    def _look_again(self, now: float) -> None:
        """Look at young jobs often; those that run for long need no more attention."""
        if self._busy and now < self._youngest + LONG_S + TICK_S:
            self._next_tick = min(self._next_tick, now + TICK_S)

    def _look_at(self, worker: Worker, now: float) -> bool:
        """Whether the worker's job is to be reported as running."""
        if now >= worker.next_step_at:
            self._press(worker, now)
        self._next_tick = min(self._next_tick, worker.next_step_at)
        running_s = now - worker.head_since
        if running_s >= BLOCKED_S and len(worker.tasks) > 1:
            self._revoke(worker)
        return running_s >= LONG_S and not worker.tasks[0].announced

    def _announce(self, worker: Worker, now: float) -> tuple[int, int, float]:
        task = worker.tasks[0]
        task.announced = True
        start = worker.head_since + self._wall_offset_s
        return (task.spec.seq, task.spec.attempt, start)

    def flush(self, now: float) -> list[Effect]:
        """Keep the CPUs busy, and return everything to be done since the last call."""
        self._assign(now)
        for computation in self.computations.values():
            self._keep_spares(computation, now)
        if now >= self._hold_until(now):
            self._send_results()
        self._look_again(now)
        effects, self._effects = self._effects, []
        return effects

    # -- handing work over ---------------------------------------------------------------

    def _take_turns(self, computation: Computation) -> None:
        if computation.queue and computation not in self._turns:
            self._turns.append(computation)

    def _assign(self, now: float) -> None:
        """Give free CPUs jobs, computations taking turns; then fill up what runs short."""
        stuck = 0
        while stuck < len(self._turns) and self._busy < self.cpus:
            computation = self._turns[0]
            self._turns.rotate(-1)
            if not computation.queue:
                self._turns.remove(computation)
            elif self._start_one(computation, now):
                stuck = 0
            else:
                stuck += 1
        for computation in list(self._turns):
            if computation.queue and computation.prepare.max_tasks_per_child != 1:
                self._top_up(computation, now)

    def _start_one(self, computation: Computation, now: float) -> bool:
        """Put one more CPU to work for the computation."""
        if computation.stage is not Stage.READY or self._uses_its_cpus(computation):
            return False
        if not computation.spares and not self._spawn(computation, now):
            return False
        worker = computation.spares.popleft()
        free = self.cpus - self._busy
        self._busy += 1
        fair = -(-len(computation.queue) // free)
        self._give(worker, min(fair, self._batch(computation)), now)
        return True

    def _cpus_for(self, computation: Computation) -> int:
        return min(self.cpus, computation.prepare.cpus or self.cpus)

    def _uses_its_cpus(self, computation: Computation) -> bool:
        """Whether the computation runs as many jobs as its cluster asked for."""
        cpus = self._cpus_for(computation)
        if cpus == self.cpus:
            return False
        return sum(bool(worker.tasks) for worker in computation.workers.values()) >= cpus

    def _top_up(self, computation: Computation, now: float) -> None:
        """Short jobs are handed over in batches, so that no process waits for the next."""
        batch = self._batch(computation)
        if batch == 1:
            return
        for worker in computation.workers.values():
            short = 0 < len(worker.tasks) <= batch // 2 and not worker.spent
            if short and computation.queue and now < worker.head_since + BLOCKED_S / 2:
                fair = -(-len(computation.queue) // self.cpus)
                self._give(worker, min(fair, batch - len(worker.tasks)), now)

    @staticmethod
    def _batch(computation: Computation) -> int:
        """How many jobs make up a hand-over."""
        if computation.prepare.max_tasks_per_child == 1 or computation.run_s < 0:
            return 1
        return 1 + min(int(HAND_OVER_S / (computation.run_s + 1e-6)), HAND_OVER_MAX - 1)

    def _give(self, worker: Worker, count: int, now: float) -> None:
        if worker.max_tasks:
            count = min(count, worker.max_tasks - worker.given)
        queue = worker.computation.queue
        tasks = [queue.popleft() for _ in range(min(count, len(queue)))]
        if not worker.tasks:
            worker.head_since = self._youngest = now
        for task in tasks:
            task.worker = worker
        worker.tasks.extend(tasks)
        worker.given += len(tasks)
        self._effects.append(Give(worker.id, [task.spec for task in tasks]))

    def _spawn(self, computation: Computation, now: float) -> bool:
        if now < computation.spawn_at or computation.stage is not Stage.READY:
            return False
        self._last_worker += 1
        max_tasks = computation.prepare.max_tasks_per_child
        worker = Worker(self._last_worker, computation, max_tasks)
        self.workers[worker.id] = computation.workers[worker.id] = worker
        computation.spares.append(worker)
        self._effects.append(Spawn(computation.id, worker.id, max_tasks))
        return True

    def _keep_spares(self, computation: Computation, now: float) -> None:
        """Fork ahead of need, so that no job waits for a fork; several at once under load."""
        if computation.prepare.max_tasks_per_child == 1:
            wanted = self._cpus_for(computation)
            if len(computation.queue) > SPARES_PER_CPU * wanted:
                wanted *= SPARES_PER_CPU
            missing = wanted - len(computation.spares)
            if missing < wanted // 2:
                return
        else:
            missing = self._cpus_for(computation) - len(computation.workers)
        while missing > 0 and self._spawn(computation, now):
            missing -= 1

    def _pause_spawning(self, computation: Computation, now: float) -> None:
        pause = max(SPAWN_PAUSE_S, min(computation.spawn_pause_s * 2, SPAWN_PAUSE_MAX_S))
        computation.spawn_pause_s = pause
        computation.spawn_at = now + pause
        self._next_tick = min(self._next_tick, computation.spawn_at)

    def _idle(self, worker: Worker) -> None:
        """The worker has nothing left to do."""
        self._busy -= 1
        worker.computation.spawn_pause_s = 0.0
        if not worker.spent and worker.computation.stage is Stage.READY:
            worker.computation.spares.append(worker)

    def _forget(self, worker: Worker) -> None:
        """The worker is dead, and its tasks have been seen to."""
        computation = worker.computation
        del self.workers[worker.id], computation.workers[worker.id]
        if worker in computation.spares:
            computation.spares.remove(worker)

    # -- ending ---------------------------------------------------------------------------

    def _measure(self, computation: Computation, results: list[JobResult]) -> None:
        mean = max(0.0, sum([result.end - result.start for result in results]) / len(results))
        if computation.run_s < 0:
            computation.run_s = mean
        else:
            computation.run_s += SMOOTHING * (mean - computation.run_s)

    def _end(
        self,
        computation: Computation,
        task: Task,
        status: int,
        reason: str,
        output: tuple[bytes, bytes] = (b"", b""),
        start: float = 0.0,
        now: float = 0.0,
    ) -> None:
        """Report a job that no job process reports; superseded attempts are not told."""
        if computation.tasks.get(task.spec.seq) is not task:
            return
        del computation.tasks[task.spec.seq]
        end = now + self._wall_offset_s if start else 0.0
        body = payload.pack_result(b"", output[0], output[1], reason)
        result = JobResult(task.spec.seq, task.spec.attempt, status, start, end, body)
        self._results.setdefault(computation, []).append(result)

    def _cancel(self, computation: Computation, task: Task, now: float) -> None:
        worker = task.worker
        if worker is None:
            self._unqueue(computation, task)
            self._end(computation, task, CANCELLED, "cancelled before it began")
        elif worker.tasks[0] is task and len(worker.tasks) == 1:
            self._interrupt(worker, now)
        else:
            self._revoke(worker)  # then we know which of them runs

    def _give_up(self, task: Task, now: float) -> None:
        """Stop an attempt whose result nobody wants."""
        computation = task.computation
        del computation.tasks[task.spec.seq]
        if task.worker is None:
            self._unqueue(computation, task)
        elif not task.cancelled:
            task.cancelled = True
            self._cancel(computation, task, now)

    @staticmethod
    def _unqueue(computation: Computation, task: Task) -> None:
        if task in computation.queue:
            computation.queue.remove(task)

    def _revoke(self, worker: Worker) -> None:
        if not worker.revoking:
            worker.revoking = True
            self._effects.append(Revoke(worker.id))

    def _take_back(self, worker: Worker, count: int) -> None:
        """The worker will not begin its last tasks: queue them again, ahead of the others."""
        computation = worker.computation
        back = [worker.tasks.pop() for _ in range(min(count, len(worker.tasks)))]
        worker.given -= len(back)
        for task in back:
            task.worker = None
            if computation.tasks.get(task.spec.seq) is not task:
                continue  # given up
            if task.cancelled:
                self._end(computation, task, CANCELLED, "cancelled before it began")
            else:
                computation.queue.appendleft(task)
        self._take_turns(computation)

    def _interrupt(self, worker: Worker, now: float) -> None:
        worker.cancelling = Cancelling.INTERRUPTED
        worker.next_step_at = now + worker.computation.prepare.cancel_grace
        self._next_tick = min(self._next_tick, worker.next_step_at)
        self._effects.append(Interrupt(worker.id))

    def _press(self, worker: Worker, now: float) -> None:
        """The job has had its time to end by itself."""
        if worker.cancelling is Cancelling.INTERRUPTED:
            worker.cancelling = Cancelling.TERMINATED
            worker.next_step_at = now + STEP_S
            self._effects.append(Terminate(worker.id))
        else:
            worker.cancelling = Cancelling.KILLED
            worker.next_step_at = now + STEP_S
            self._effects.append(Destroy(worker.id))

    def _calm(self, worker: Worker) -> None:
        """The job that was to be ended has ended; the worker can go on."""
        worker.cancelling = Cancelling.NOT
        worker.next_step_at = float("inf")

    def _release(self, computation: Computation) -> None:
        if computation.stage is Stage.RELEASING:
            return
        computation.stage = Stage.RELEASING
        computation.tasks.clear()
        computation.queue.clear()
        computation.spares.clear()
        for worker in computation.workers.values():
            self._busy -= bool(worker.tasks)
            worker.tasks.clear()
        self._results.pop(computation, None)
        self._effects.append(StopTemplate(computation.id))

    # -- saying ---------------------------------------------------------------------------

    def _hold_until(self, now: float) -> float:
        """Results of short jobs wait a moment for others, unless CPUs could run out of work."""
        if not self._results:
            return float("inf")
        if self._held_since is None:
            self._held_since = now
        until = self._held_since + HOLD_S
        if any(len(computation.queue) < self.cpus for computation in self._results):
            return now
        self._next_tick = min(self._next_tick, until)
        return until

    def _send_results(self) -> None:
        """While there is no broker the results stay here."""
        if self.broker:
            for computation, results in self._results.items():
                self._send(Done(computation.id, results))
            self._results = {}
            self._held_since = None

    def _send(self, message: Body) -> None:
        if self.broker:
            self._effects.append(Send(self.broker, message))

    # -- invariants -----------------------------------------------------------------------

    def check(self) -> None:
        """Assert what must hold between any two events."""
        assert self._busy == sum(bool(worker.tasks) for worker in self.workers.values())
        assert self._busy <= self.cpus
        for computation in self.computations.values():
            self._check_computation(computation)

    @staticmethod
    def _check_computation(computation: Computation) -> None:
        queued = list(computation.queue)
        given = [task for worker in computation.workers.values() for task in worker.tasks]
        live = [task for task in given if computation.tasks.get(task.spec.seq) is task]
        assert len(queued) + len(live) == len(computation.tasks)
        assert all(task.worker is None for task in queued)
        assert all(task.worker is not None for task in given)
        assert all(computation.tasks[task.spec.seq] is task for task in queued)
        for worker in computation.workers.values():
            left = computation.stage is Stage.RELEASING  # nobody counts any more
            assert left or worker.given - worker.ended == len(worker.tasks) or worker.spent
        for spare in computation.spares:
            assert not spare.tasks and computation.workers[spare.id] is spare

    HANDLERS: ClassVar[dict[type[Any], Callable[..., None]]] = {
        Prepare: _on_prepare,
        Run: _on_run,
        Withdraw: _on_withdraw,
        Kill: _on_kill,
        Release: _on_release,
        Inventory: _on_inventory,
    }


def _is_of(result: JobResult, task: Task) -> bool:
    return result.seq == task.spec.seq and result.attempt == task.spec.attempt
