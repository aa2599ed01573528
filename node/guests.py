"""Brokers that the node doesn't work for any more: they get what is theirs, and nothing else.

While a session with one lasts, the session holds these results; what it could not deliver comes
back when it ends. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from dispy.protocol.messages import Body, Done, Released

from .effects import Effect, Goodbye, Send
from .spool import Spool

GUEST_S = 30.0  # what there is may take so long to be handed out


class Guests:
    """Who is here, and what is kept for others; ``keep_s``: for how long."""

    def __init__(self, keep_s: float) -> None:
        self._spool = Spool(keep_s)
        self._until: dict[str, float] = {}

    def __contains__(self, peer: str) -> bool:
        return peer in self._until

    @property
    def peers(self) -> list[str]:
        """All that are here."""
        return list(self._until)

    def may_come(self, peer: str) -> bool:
        """Whether there is something for a broker."""
        return peer in self._until or peer in self._spool

    def keep(self, peer: str, undelivered: Sequence[Body], now: float) -> None:
        """A session has ended, and this has not been acknowledged."""
        self._spool.keep(peer, undelivered, now)

    def welcome(self, peer: str, undelivered: Sequence[Body], now: float) -> list[Effect]:
        """A broker has come while the node works for another."""
        self._until[peer] = now + GUEST_S
        again = [message for message in undelivered if isinstance(message, (Done, Released))]
        return [*(Send(peer, message) for message in again), *self.hand_out(peer)]

    def hand_out(self, peer: str) -> list[Effect]:
        """Send what was kept for a broker; of its computations nothing else is left."""
        dones = self._spool.take(peer)
        messages: list[Body] = [*dones, *(Released(done.computation) for done in dones)]
        return [Send(peer, message) for message in messages]

    def leave(self, peer: str) -> None:
        """A guest has gone, or is one no longer."""
        self._until.pop(peer, None)

    def deadline(self) -> float:
        """When `tick` next has something to do."""
        return min([*self._until.values(), self._spool.deadline()])

    def tick(self, now: float, served: str) -> list[Effect]:
        """Send away who has had time enough; drop what nobody came for."""
        self._spool.tick(now)
        gone = [peer for peer, until in self._until.items() if now >= until]
        for peer in gone:
            del self._until[peer]
        reason = f"this node works for {served} at present"
        return [Goodbye(peer, reason, keep=True) for peer in gone]

    def check(self) -> None:
        """Assert what must hold between any two calls."""
        self._spool.check()
        assert not any(peer in self._spool for peer in self._until)
