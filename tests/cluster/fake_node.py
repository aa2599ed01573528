"""A node for tests of the client: it speaks the real protocol, and runs nothing.

A job ends at once with its arguments as its result, unless its first argument is "wait"; the
test may let it say something meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

from dispy.pickling import load
from dispy.protocol import identity
from dispy.protocol.events import Joined, Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.messages import (
    FINISHED,
    BlobPiece,
    BlobPieces,
    Body,
    Buffer,
    Done,
    FilePut,
    Heard,
    Holding,
    JobRecord,
    JobResult,
    JobSpec,
    Kill,
    Prepare,
    Prepared,
    PutFile,
    Records,
    RecordsHeard,
    Release,
    Released,
    Run,
    Started,
    Vitals,
)
from dispy.protocol.payload import pack_result
from dispy.protocol.transport import Bus

VITALS = Vitals(90.0, 1 << 30, 1 << 40, 80.0)
STEP_S = 0.05


class FakeNode:
    """A thread that is a node with two CPUs, at ``address``."""

    def __init__(self) -> None:
        self._bus = Bus()
        self.address = self._bus.listen("127.0.0.1:0")
        guard = identity.new_guard()
        me = identity.describe(
            "node", "0", name="fake", cpus=2, addresses=[self.address], token=guard.token
        )
        self._exchange = Exchange(me, self._bus, identity.random_name, guard=guard)
        self._stopping = threading.Event()
        self._broker = ""
        self._running: dict[int, tuple[int, JobSpec]] = {}  # by seq: computation and job
        self.change = threading.Condition()
        self.prepared: list[Prepare] = []
        self.got: list[Body] = []
        self.heard: list[Heard] = []
        self.pieces: list[BlobPiece] = []
        self._to_say: list[Body] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping.set()
        self._bus.wake()
        self._thread.join(10)

    def say(self, seq: int, number: int, kind: int, payload: bytes) -> None:
        """Let a running job say something."""
        computation, spec = self._running[seq]
        record = JobRecord(seq, spec.attempt, number, kind, payload)
        self._tell(Records(computation, [record]))

    def ask(self, message: Body) -> None:
        """Say something else to the broker."""
        self._tell(message)

    def finish(self, seq: int, value: bytes) -> None:
        """End a running job with this pickled object."""
        computation, spec = self._running.pop(seq)
        self._tell(Done(computation, [_result(spec, value)]))

    def is_running(self, seq: int) -> bool:
        """Whether a job is here."""
        return seq in self._running

    def await_that(self, condition: Callable[[], object], timeout_s: float = 10.0) -> bool:
        """Wait until something holds for what the node has been told."""
        with self.change:
            return bool(self.change.wait_for(condition, timeout_s))

    def _tell(self, message: Body) -> None:
        self._to_say.append(message)
        self._bus.wake()

    def _run(self) -> None:
        while not self._stopping.is_set():
            while self._to_say:
                self._exchange.send(self._broker, self._to_say.pop(0))
            self._exchange.flush(time.monotonic())
            for arrival in self._bus.poll(STEP_S):
                for event in self._exchange.receive(arrival, time.monotonic()):
                    self._handle(event)
            for event in self._exchange.tick(time.monotonic()):
                self._handle(event)
        self._exchange.goodbye(self._broker, "the test is over")
        self._bus.close()

    def _handle(self, event: object) -> None:
        if isinstance(event, Joined):
            self._broker = event.peer
            self._exchange.send(self._broker, Holding([], [], VITALS))
        elif isinstance(event, Received):
            with self.change:
                self._receive(event.message)
                self.change.notify_all()

    def _receive(self, message: Any) -> None:
        self.got.append(message)
        send = self._exchange.send
        if isinstance(message, Prepare):
            self.prepared.append(message)
            send(self._broker, Prepared(message.computation))
        elif isinstance(message, Run):
            for spec in message.jobs:
                self._take(message.computation, spec)
        elif isinstance(message, Kill):
            for seq, _ in message.jobs:
                computation, spec = self._running.pop(seq)
                send(self._broker, Done(computation, [_result(spec, b"", "killed")]))
        elif isinstance(message, PutFile):
            send(self._broker, FilePut(message.computation, message.request))
        elif isinstance(message, RecordsHeard):
            self.heard += message.jobs
        elif isinstance(message, BlobPieces):
            self.pieces += message.pieces
        elif isinstance(message, Release):
            send(self._broker, Released(message.computation))

    def _take(self, computation: int, spec: JobSpec) -> None:
        payload: Buffer = spec.payload
        args = load(payload, spec.parts)[0]
        if args[:1] == ("wait",):
            self._running[spec.seq] = (computation, spec)
            started = (spec.seq, spec.attempt, time.time())
            self._exchange.send(self._broker, Started(computation, [started]))
        else:
            self._exchange.send(self._broker, Done(computation, [_result(spec, payload)]))


def _result(spec: JobSpec, value: Buffer, exception: str = "") -> JobResult:
    body = pack_result(value, b"out", b"", exception)
    now = time.time()
    return JobResult(spec.seq, spec.attempt, 9 if exception else FINISHED, now, now, body)
