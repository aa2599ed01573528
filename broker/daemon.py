"""The broker's shell: sockets, disk and clock around the scheduler. It decides nothing.

What is to be kept is on disk before anything is sent that is based on it, acknowledgements
included: a step takes in all that has arrived, commits once, and only then speaks. So after a
`kill -9` at any moment the others still have whatever the disk hasn't.
"""

from __future__ import annotations

import logging
import secrets
import time
from typing import TYPE_CHECKING, get_args

import msgspec

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
from .crashpoints import crashpoint
from .effects import Dial, Effect, Forget, Goodbye, JournalEffect, Load, Send, Undial
from .settings import Settings

if TYPE_CHECKING:
    from .journal import Journal  # SQLite is only loaded where there is one

JOURNAL_EFFECTS = frozenset(get_args(JournalEffect))
LOOK_S = 1.0  # how often the room on the disk is looked at
log = logging.getLogger("dispy.broker")


class BrokerDaemon:
    """Runs a `Scheduler` on a `Bus`, step by step; with a `Journal` it remembers all.

    Raises `JournalBroken` or `JournalFull` from `step` when nothing can be kept any more; what
    was to be said then has not been said.
    """

    def __init__(
        self,
        bus: Bus,
        software: str,
        name: str = "",
        settings: Settings | None = None,
        journal: Journal | None = None,
    ) -> None:
        self.bus = bus
        self.journal = journal
        offset_s = time.time() - time.monotonic()
        self.scheduler = Scheduler(secrets.randbits(40) << 16, settings, offset_s)
        identity = describe("broker", software, name=name)
        if journal is not None:  # to the others it is the same broker after a restart
            identity = msgspec.structs.replace(identity, instance=journal.instance)
        self.exchange = Exchange(identity, self.bus, random_name, self._admit)
        self._look_at = 0.0

    def restore(self) -> None:
        """Go on where the journal ends; to be called before the first step."""
        if self.journal is not None:
            self.scheduler.restore(self.journal.load(), time.monotonic())

    def step(self, timeout_s: float) -> None:
        """Wait for something to do, at most so many seconds, and do it."""
        deadline = min(self.exchange.deadline(), self.scheduler.deadline())
        arrivals = self.bus.poll(min(timeout_s, deadline - time.monotonic()))
        now = time.monotonic()
        self._handle(self.exchange.tick(now))  # it beats: not to acknowledge what isn't kept
        for arrival in arrivals:
            self._handle(self.exchange.receive(arrival, time.monotonic()))
        self._round(time.monotonic())

    def close(self, goodbye: bool = True) -> None:
        """Close the sockets and the journal.

        Say ``goodbye`` first unless the broker is to come back: peers that hear it give up what
        they have of the broker.
        """
        if goodbye:
            for peer in list(self.exchange.links):
                self.exchange.goodbye(peer, "the broker was stopped")
        self.bus.close()
        if self.journal is not None:
            self.journal.close()

    def _round(self, now: float) -> None:
        if self.journal is not None and now >= self._look_at:
            self._look_at = now + LOOK_S
            self._look(self.journal, now)
        self.scheduler.tick(now)
        while effects := self.scheduler.flush(now):
            self._commit(effects)
            loads = [effect for effect in effects if isinstance(effect, Load)]
            for effect in effects:
                self._carry_out(effect)
            if not loads:
                break
        crashpoint("before-send")
        self.exchange.flush(now)
        crashpoint("after-send")

    def _look(self, journal: Journal, now: float) -> None:
        """Take no more jobs while the disk is full."""
        journal.look(now)
        if journal.trouble != self.scheduler.state.trouble:
            if journal.trouble:
                log.error("no jobs are taken: %s", journal.trouble)
            else:
                log.warning("jobs are taken again: there is room in the journal")
            self.scheduler.set_trouble(journal.trouble)

    def _commit(self, effects: list[Effect]) -> None:
        if self.journal is None:
            return
        kept = [effect for effect in effects if type(effect) in JOURNAL_EFFECTS]
        if kept:
            self.journal.apply(kept)  # type: ignore[arg-type]

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
        elif isinstance(effect, Undial):
            self.exchange.undial(effect.address)
        elif isinstance(effect, Load):
            assert self.journal is not None
            self.scheduler.loaded(effect.batch, self.journal.read_batch(effect.batch))

    @staticmethod
    def _admit(identity: Identity) -> str:
        if identity.role in ("client", "node"):
            return ""
        return f"a broker takes clients and nodes, not a {identity.role}"
