"""The broker's shell: sockets and clock around the scheduler. It decides nothing."""

from __future__ import annotations

import logging
import secrets
import time

from dispy.protocol.errors import ProtocolError
from dispy.protocol.exchange import (
    Away,
    Back,
    DialFailed,
    Event,
    Exchange,
    Joined,
    Left,
    Received,
)
from dispy.protocol.identity import describe, random_name
from dispy.protocol.messages import Identity
from dispy.protocol.transport import Bus

from .core import Scheduler
from .effects import Dial, Effect, Forget, Goodbye, Send

log = logging.getLogger("dispy.broker")


class BrokerDaemon:
    """Runs a `Scheduler` on a `Bus`, step by step."""

    def __init__(self, bus: Bus, software: str, name: str = "") -> None:
        self.bus = bus
        self.scheduler = Scheduler(first_id=secrets.randbits(40) << 16)
        identity = describe("broker", software, name=name)
        self.exchange = Exchange(identity, self.bus, random_name, self._admit)

    def step(self, timeout_s: float) -> None:
        """Wait for something to do, at most so many seconds, and do it."""
        deadline = min(self.exchange.deadline(), self.scheduler.deadline())
        for arrival in self.bus.poll(min(timeout_s, deadline - time.monotonic())):
            self._handle(self.exchange.receive(arrival, time.monotonic()))
        self._round(time.monotonic())

    def close(self) -> None:
        """Say goodbye to all peers and close the sockets."""
        for peer in list(self.exchange.links):
            self.exchange.goodbye(peer, "the broker was stopped")
        self.bus.close()

    def _round(self, now: float) -> None:
        self._handle(self.exchange.tick(now))
        self.scheduler.tick(now)
        for effect in self.scheduler.flush(now):
            self._carry_out(effect)
        self.exchange.flush(now)

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            try:
                self._on_event(event)
            except ProtocolError as error:
                self._offended(event, error)

    def _on_event(self, event: Event) -> None:
        now = time.monotonic()
        scheduler = self.scheduler
        if isinstance(event, Received):
            scheduler.receive(event.peer, event.message, now)
        elif isinstance(event, Joined):
            log.debug("%s %s joined", event.identity.role, event.identity.name)
            scheduler.joined(event.peer, event.identity, event.undelivered, event.address, now)
        elif isinstance(event, Back):
            scheduler.back(event.peer)
        elif isinstance(event, Away):
            scheduler.away(event.peer, event.reason, event.gone, now)
            if event.gone:
                self.exchange.forget(event.peer)
        elif isinstance(event, Left):
            scheduler.left(event.peer, event.reason)
        elif isinstance(event, DialFailed):
            log.debug("%s: %s", event.address, event.reason)
            scheduler.unreachable(event.address, event.reason)

    def _offended(self, event: Event, error: ProtocolError) -> None:
        """A peer said what makes no sense: end its session, serve the others."""
        if isinstance(event, (Received, Joined)):
            log.warning("peer %s broke the protocol: %s", event.peer, error)
            self.exchange.goodbye(event.peer, f"protocol error: {error}")
            self.scheduler.left(event.peer, f"it broke the protocol: {error}")

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self.exchange.send(effect.peer, effect.message)
        elif isinstance(effect, Dial):
            self.exchange.dial(effect.address)
        elif isinstance(effect, Forget):
            self.exchange.forget(effect.peer)
        elif isinstance(effect, Goodbye):
            self.exchange.goodbye(effect.peer, effect.reason)
        else:
            self.exchange.undial(effect.address)

    @staticmethod
    def _admit(identity: Identity) -> str:
        if identity.role in ("client", "node"):
            return ""
        return f"a broker takes clients and nodes, not a {identity.role}"
