"""A small connection to a broker, for people who ask something and wait for the answer.

One thread, no clusters: it registers as a client, asks, and says goodbye.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

from msgspec import structs

from dispy.protocol.errors import DispyError
from dispy.protocol.events import DialFailed, Event, Joined, Left, Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.identity import describe, new_guard, random_name
from dispy.protocol.keys import Keys
from dispy.protocol.messages import (
    STATUS,
    BrokerReport,
    ClusterReport,
    NodeReport,
    Operate,
    Report,
)
from dispy.protocol.transport import Bus

from ._version import __version__

TIMEOUT_S = 10.0


class Unreachable(DispyError):
    """No broker answers there."""


class Refused(DispyError):
    """The broker has not done what it was asked; the text says why."""


class Operator:
    """A session with the broker at ``address``, "host:port". Use it in a ``with`` statement.

    All methods raise `Unreachable` when no answer comes within ``timeout_s`` seconds.
    """

    def __init__(
        self, address: str, timeout_s: float = TIMEOUT_S, keys: Keys | None = None
    ) -> None:
        self._address = address
        self._timeout_s = timeout_s
        self._bus = Bus(keys)
        guard = new_guard(keys)
        me = describe("client", __version__, token=guard.token)
        self._exchange = Exchange(me, self._bus, random_name, guard=guard)
        self._broker = ""  # its instance, once it has registered us
        self._requests = 0
        self._reports: dict[int, Report] = {}
        self._nodes: list[NodeReport] = []  # of the parts of a report so far
        self._clusters: list[ClusterReport] = []
        self._exchange.dial(address)

    def __enter__(self) -> Operator:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Say goodbye and close the connection."""
        if self._broker:
            self._exchange.goodbye(self._broker)
        self._bus.close()

    def status(self) -> BrokerReport:
        """Ask how the broker is."""
        self._nodes, self._clusters = [], []
        status = self.ask(STATUS).status
        if status is None:
            raise Refused(f"the broker at {self._address} doesn't say how it is")
        return structs.replace(status, nodes=self._nodes, clusters=self._clusters)

    def ask(
        self, action: str, target: str = "", jobs: Sequence[int] = (), reason: str = ""
    ) -> Report:
        """Ask for one thing and return the answer; `Refused` if it can't be done."""
        give_up_at = time.monotonic() + self._timeout_s
        while not self._broker:
            self._step(give_up_at)
        self._requests += 1
        number = self._requests
        question = Operate(number, action, target, list(jobs), reason)
        self._exchange.send(self._broker, question)
        while number not in self._reports:
            self._step(give_up_at)
        report = self._reports.pop(number)
        if report.error:
            raise Refused(report.error)
        return report

    def rest(self, seconds: float) -> None:
        """Let time pass, but keep the session alive."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._round(end)

    def _step(self, give_up_at: float) -> None:
        if time.monotonic() >= give_up_at:
            self._fail(f"no answer within {self._timeout_s:g} s")
        self._round(give_up_at)

    def _round(self, until: float) -> None:
        """Send what there is, and wait for something to arrive."""
        now = time.monotonic()
        self._handle(self._exchange.tick(now))
        self._exchange.flush(now)
        end = min(until, self._exchange.deadline())
        for arrival in self._bus.poll(max(0.0, end - time.monotonic())):
            self._handle(self._exchange.receive(arrival, time.monotonic()))

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Joined):
                if event.identity.role != "broker":
                    self._fail(f"there is a {event.identity.role} at that port")
                self._broker = event.peer
            elif isinstance(event, Received) and isinstance(event.message, Report):
                self._on_report(event.message)
            elif isinstance(event, (DialFailed, Left)):
                self._fail(event.reason)

    def _on_report(self, report: Report) -> None:
        """Put the parts of an answer together."""
        number = report.request
        if report.status is not None:
            self._nodes += report.status.nodes
            self._clusters += report.status.clusters
        if not report.more:
            self._reports[number] = report

    def _fail(self, reason: str) -> None:
        raise Unreachable(f"no broker answers at {self._address}: {reason}")
