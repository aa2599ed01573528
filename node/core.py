"""The node's state machine: what the broker says, what has happened here, and what follows.

It does no I/O and reads no clock. Events come in through the public methods, `flush` hands
work to the job processes and returns all effects since the last call. A node serves one broker
at a time. The life of a computation is in `setups`, what the broker wants done with its jobs in
`assignments`, who gets which job in `handover`, what comes of it in `reports`, how jobs are ended
in `endings`, what waits for files in `files`, what is looked at as time passes in `watching`, when
it takes no jobs in `duty`, and what becomes of other brokers in `guests`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from dispy.protocol.errors import ProtocolError
from dispy.protocol.fetching import STORE_BYTES, Fetching
from dispy.protocol.messages import (
    DOCTOR,
    BlobPieces,
    Body,
    Define,
    Done,
    FilePut,
    Holding,
    Identity,
    JobRecord,
    JobResult,
    Prepare,
    Prepared,
    Pulse,
    Records,
    Release,
    Released,
    Returned,
    SetCpus,
    Started,
    Vitals,
)

from . import assignments, duty, files, handover, invariants, reports, setups, watching
from .effects import (
    ANSWERED,
    Effect,
    Goodbye,
    Leave,
    Measure,
    Send,
)
from .guests import Guests
from .service import Hours, Phase
from .state import NEVER, Duty, Node, Stage
from .telling import send, send_due_results, send_results

LEASE_S = 25.0  # a broker that is away for longer may be replaced by another
KEEP_S = 3600.0  # ... and is given up after so long; its results are kept as long again
PULSE_MIN_S = 0.1


class Agent:
    """Owns every job that the broker has sent until its result is on the way back.

    ``cpus`` jobs run at a time. ``wall_offset_s`` is what turns ``now`` into seconds since
    the epoch. Files that nobody needs now are kept up to ``store_bytes``; larger ones than
    ``max_file_bytes`` are refused (0: none). Jobs are taken in these ``hours`` of the day (None:
    always), for ``serves`` computations (negative: any number). ``keep_s``: a broker that is away
    for so long is given up. ``check`` asserts all invariants; tests call it after every event.
    """

    def __init__(
        self,
        cpus: int,
        wall_offset_s: float = 0.0,
        store_bytes: int = STORE_BYTES,
        max_file_bytes: int = 0,
        hours: Hours | None = None,
        serves: int = -1,
        keep_s: float = KEEP_S,
    ) -> None:
        fetching = Fetching(store_bytes, max_file_bytes)
        self.node = Node(cpus, wall_offset_s, fetching, duty=Duty(hours, serves))
        self.computations = self.node.computations  # all that are here, by the broker's number
        self.workers = self.node.workers  # all job processes
        if hours is not None:
            self.node.wake_at(0.0)
        self.broker_name = ""
        self.home = ""  # the broker that the node dials itself, once it has answered
        self.away_since: float | None = None
        self.guests = Guests(keep_s)
        self._keep_s = keep_s
        self._pulse_at = NEVER

    @property
    def broker(self) -> str:
        """The peer that is served; empty: none."""
        return self.node.broker

    # -- the broker ----------------------------------------------------------------------

    def admit(self, identity: Identity, now: float) -> str:
        """Say why a peer that wants to register is refused; empty: it is welcome."""
        if identity.role == DOCTOR:
            return self._engagement("", now)
        if identity.role != "broker":
            return f"a node takes brokers, not a {identity.role}"
        if self.guests.may_come(identity.instance):
            return ""
        return self._engagement(identity.instance, now)

    def _engagement(self, peer: str, now: float) -> str:
        """Say why the node can't work for a broker now; empty: it can."""
        if self.node.leaving and peer != self.broker:
            return setups.LEAVING
        is_home = self.broker == self.home and self.away_since is None
        if self.broker in ("", peer) or not (self.computations or is_home):
            return ""
        if self.away_since is None:
            return f"this node works for {self.broker_name} at present"
        left_s = self.away_since + LEASE_S - now
        if left_s > 0:
            return f"this node waits {left_s:.0f} s more for {self.broker_name} to come back"
        return ""

    def seeks_home(self, now: float) -> bool:
        """Whether to dial the broker that the node is meant for: not while another has it."""
        if self.home and (self.broker == self.home or self.guests.may_come(self.home)):
            return True
        return not self._engagement("", now)

    def is_free(self, now: float) -> bool:
        """Whether no broker has the node, so that any may have it."""
        if self.node.leaving or (self.broker and self.away_since is None):
            return False
        return not self._engagement("", now)

    def joined(
        self,
        peer: str,
        identity: Identity,
        undelivered: list[Body],
        now: float,
        vitals: Vitals | None = None,
        is_home: bool = False,
    ) -> None:
        """A broker has registered: tell it what is here, first what it may not know yet.

        ``is_home``: the node has dialled it, so nobody has asked `admit`.
        """
        self.home = peer if is_home else self.home
        engagement = self._engagement(peer, now)
        if engagement and self.guests.may_come(peer):
            self.node.effects += self.guests.welcome(peer, undelivered, now)
            self.node.wake_at(self.guests.deadline())
            return
        if engagement and is_home:
            self.node.effects.append(Goodbye(peer, engagement))
            return
        if self.broker and self.broker != peer:
            self._serve_nobody(f"it works for {identity.name} now", now)
        self.guests.leave(peer)
        self.node.broker, self.broker_name, self.away_since = peer, identity.name, None
        for message in undelivered:
            if isinstance(message, (Done, Records, FilePut)):
                send(self.node, message)
        self.node.effects += self.guests.hand_out(peer)
        send_results(self.node)
        self._report_holding(vitals)
        self.node.fetching.ask_again()
        self.node.wake_at(now)

    def _report_holding(self, vitals: Vitals | None) -> None:
        jobs = [
            (computation.id, task.spec.seq, task.spec.attempt)
            for computation in self.computations.values()
            for task in computation.tasks.values()
        ]
        known = [each for each in self.computations.values() if each.stage is not Stage.RELEASING]
        send(self.node, Holding([computation.id for computation in known], jobs, vitals))
        duty.introduce(self.node)
        for computation in known:
            if computation.stage is Stage.READY:
                send(self.node, Prepared(computation.id))
            watching.announce_again(computation)

    def away(self, peer: str, now: float) -> None:
        """The broker can't be reached: go on with what is here, and keep the results."""
        if peer == self.broker and self.away_since is None:
            self.away_since = now
            self.node.wake_at(now + self._keep_s)

    def back(self, peer: str) -> None:
        """The broker can be reached again, and nothing was lost."""
        if peer == self.broker:
            self.away_since = None
            self.node.next_tick = 0.0  # pulses go on

    def left(self, peer: str) -> None:
        """The broker has ended the session: nobody wants these results."""
        self.guests.leave(peer)
        if peer == self.broker:
            self._work_for_nobody()

    def ahead(self) -> list[int]:
        """Return the job processes that have more jobs than they run."""
        return [worker.id for worker in self.workers.values() if len(worker.tasks) > 1]

    def stop(self) -> None:
        """Give back what has not begun, end the rest, say goodbye.

        What job processes have ahead should have been taken back from them.

        All that may have begun is told, so that the broker knows: what it hasn't heard of has not
        even arrived here.
        """
        for computation in self.computations.values():
            begun = [
                (task.spec.seq, task.spec.attempt, worker.head_since + self.node.wall_offset_s)
                for worker in computation.workers.values()
                for task in worker.tasks
            ]
            send(self.node, Started(computation.id, begun))
            unbegun = [*computation.queue, *computation.waiting]
            waiting = [(task.spec.seq, task.spec.attempt) for task in unbegun]
            send(self.node, Returned(computation.id, waiting, asked=False))
        send_results(self.node)
        for peer in filter(None, [*self.guests.peers, self.broker]):
            self.node.effects.append(Goodbye(peer, "it was stopped"))
        self._work_for_nobody()

    def receive(self, peer: str, message: Body, now: float) -> None:
        """Handle a message of the broker; `ProtocolError` if it makes no sense."""
        of_jobs = assignments.HANDLERS.get(type(message))
        handler = self.HANDLERS.get(type(message))
        if of_jobs is None and handler is None:
            raise ProtocolError(f"a node takes no {type(message).__name__}")
        if peer == self.broker:
            if of_jobs is not None:
                of_jobs(self.node, message, now)
            elif handler is not None:
                handler(self, message, now)
        elif peer in self.guests and isinstance(message, Release):
            self.node.effects.append(Send(peer, Released(message.computation)))

    def _serve_nobody(self, reason: str, now: float) -> None:
        """Give the broker up; what it hasn't acknowledged is kept for it."""
        send_results(self.node)
        self.node.effects.append(Goodbye(self.broker, reason, keep=True))
        self._work_for_nobody()

    def kept_for(self, peer: str, undelivered: list[Body], now: float) -> None:
        """The session with a broker has ended, and this has not been acknowledged."""
        self.guests.keep(peer, undelivered, now)
        self.node.wake_at(self.guests.deadline())

    def _work_for_nobody(self) -> None:
        self.away_since = None
        setups.release_all(self.node)

    # -- messages: computations --------------------------------------------------------------

    def _on_prepare(self, message: Prepare, now: float) -> None:
        computation = self.computations.get(message.computation)
        if computation is None:
            setups.begin(self.node, message, now)
            interval = message.spec.pulse_interval
            if interval > 0:
                self._pulse_at = min(self._pulse_at, now + max(interval, PULSE_MIN_S))
                self.node.wake_at(self._pulse_at)
        elif computation.stage is Stage.READY:
            send(self.node, Prepared(message.computation))
        elif computation.stage is Stage.RELEASING:
            computation.again = message  # when the old one is gone

    def _on_define(self, message: Define, now: float) -> None:
        computation = self.computations.get(message.cluster)
        if computation is None:
            return
        if computation.stage is not Stage.RELEASING:
            computation.layers += message.layers
            setups.define(self.node, computation)
        elif computation.again is not None:  # of those that are to be loaded then
            spec = computation.again.spec
            spec.layers = [*spec.layers, *message.layers]

    def _on_set_cpus(self, message: SetCpus, now: float) -> None:
        computation = self.computations.get(message.computation)
        if computation is not None:
            wanted = computation.again or computation  # the one that comes after it
            wanted.cpus = max(0, message.cpus)

    def _on_release(self, message: Release, now: float) -> None:
        computation = self.computations.get(message.computation)
        if computation is None:
            if not message.keep:
                setups.clear(self.node, message.computation)
            send(self.node, Released(message.computation))
        else:
            computation.again = None
            setups.release(self.node, computation, message.keep)

    def _on_blob_pieces(self, message: BlobPieces, now: float) -> None:
        for piece in message.pieces:
            self.node.fetching.receive(message.cluster, piece, now)

    # -- files: what the shell reports -------------------------------------------------------------

    def blob_kept(self, digest: bytes) -> None:
        """The last piece of a blob has been written, and it is what its name says."""
        self.node.fetching.kept(digest)

    def blob_spoiled(self, digest: bytes) -> None:
        """The last piece has been written, and it is something else."""
        self.node.fetching.spoiled(digest)

    def blob_failed(self, digest: bytes, reason: str) -> None:
        """A blob can't be written; nothing is left of it."""
        self.node.fetching.failed(digest, reason)

    def file_placed(self, number: int, request: int, error: str) -> None:
        """A file is where `Put` wanted it, or ``error`` says why not."""
        computation = self.computations.get(number)
        if computation is not None:
            setups.placed(self.node, computation, request, error)

    # -- templates and job processes: what the shell reports -----------------------------

    def template_ready(self, number: int) -> None:
        """The computation is loaded; job processes can be forked."""
        computation = self.computations.get(number)
        if computation is not None and computation.stage is Stage.PREPARING:
            setups.ready(self.node, computation)

    def template_failed(self, number: int, reason: str) -> None:
        """The computation can't be loaded, or its template has died."""
        computation = self.computations.get(number)
        if computation is not None:
            setups.fail(self.node, computation, reason)

    def template_gone(self, number: int) -> None:
        """Nothing is left of the computation."""
        computation = self.computations.get(number)
        if computation is not None:
            setups.gone(self.node, computation)

    def shutdown_asked(self) -> None:
        """A clean-up wants the node to stop, which it does when all computations are gone."""
        self.node.leaving = True

    def recorded(self, worker_id: int, records: list[JobRecord]) -> None:
        """Jobs of a process have something to say."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            reports.records(self.node, worker, records)

    def outcomes(self, worker_id: int, results: list[JobResult], now: float) -> None:
        """A job process has reported jobs that ended, in the order in which they were given."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            reports.outcomes(self.node, worker, results, now)

    def revoked(self, worker_id: int, count: int, now: float) -> None:
        """The last ``count`` jobs given to a job process will not be begun by it."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            reports.revoked(self.node, worker, count, now)

    def worker_exited(
        self, worker_id: int, started: int, reason: str, output: tuple[bytes, bytes], now: float
    ) -> None:
        """A job process is dead. It had begun ``started`` of the jobs it was given."""
        worker = self.workers.get(worker_id)
        if worker is not None:
            reports.exited(self.node, worker, started, reason, output, now)

    @property
    def is_busy(self) -> bool:
        """Whether any job runs."""
        return self.node.busy > 0

    # -- time ----------------------------------------------------------------------------

    def deadline(self) -> float:
        """When `tick` next has something to do."""
        return self.node.next_tick

    def tick(self, now: float) -> None:
        """Report long jobs, free what waits behind them, press on with ending others."""
        if now < self.node.next_tick:
            return
        self.node.next_tick = NEVER
        for computation in list(self.computations.values()):
            watching.look_at(self.node, computation, now)
        if self.away_since is not None:
            if now >= self.away_since + self._keep_s:
                self._serve_nobody("it was away for too long", now)
            else:
                self.node.wake_at(self.away_since + self._keep_s)
        self.node.effects += self.guests.tick(now, self.broker_name)
        self.node.fetching.tick(now)
        self._tick_pulse(now)
        duty.tick(self.node, now)
        self.node.wake_at(min(self.guests.deadline(), self.node.fetching.deadline()))
        watching.look_again(self.node, now)

    def _tick_pulse(self, now: float) -> None:
        """Ask for a measurement at the shortest interval that a computation wants."""
        intervals = [each.prepare.spec.pulse_interval for each in self.computations.values()]
        shortest = min([each for each in intervals if each > 0], default=NEVER)
        if not self.broker or self.away_since is not None or shortest == NEVER:
            self._pulse_at = NEVER
            return
        if now >= self._pulse_at:
            self.node.effects.append(Measure())
            self._pulse_at = NEVER
        self._pulse_at = min(self._pulse_at, now + max(shortest, PULSE_MIN_S))
        self.node.wake_at(self._pulse_at)

    def time_told(self, time_s: float, now: float) -> None:
        """The answer to `TellTime`: the local time of day, in seconds since midnight."""
        duty.told(self.node, time_s, now)

    def measured(self, vitals: Vitals) -> None:
        """The answer to `Measure`."""
        send(self.node, Pulse(vitals))

    def flush(self, now: float) -> list[Effect]:
        """Keep the CPUs busy, and return everything to be done since the last call."""
        if self.node.again:
            again, self.node.again = self.node.again, []
            for message in again:
                self._on_prepare(message, now)
        if self.node.duty.phase is not Phase.OPEN:
            duty.settle(self.node, now)
        if self.node.fetching.has_news:
            files.settle(self.node, now)
            files.fetch(self.node, now)
        handover.assign(self.node, now)
        for computation in self.computations.values():
            handover.keep_spares(self.node, computation, now)
        send_due_results(self.node, now)
        watching.look_again(self.node, now)
        if not self.computations and (self.node.leaving or duty.is_over(self.node)):
            self.node.leaving, self.node.duty.serves = False, -1  # it is said once
            self.node.effects.append(Leave())
        effects, self.node.effects = self.node.effects, []
        return effects

    def is_settled(self, effects: Sequence[Effect]) -> bool:
        """Whether nothing that must be done now follows from these, without an event."""
        return ANSWERED.isdisjoint(map(type, effects))

    # -- invariants -----------------------------------------------------------------------

    def check(self) -> None:
        """Assert what must hold between any two events."""
        assert self.broker not in self.guests
        self.guests.check()
        invariants.check(self.node)

    HANDLERS: ClassVar[dict[type[Any], Callable[..., None]]] = {
        Prepare: _on_prepare,
        Define: _on_define,
        SetCpus: _on_set_cpus,
        Release: _on_release,
        BlobPieces: _on_blob_pieces,
    }
