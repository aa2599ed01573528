"""A peer with real sockets that says whatever a test wants it to."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import TypeVar

from dispy.protocol.events import DialFailed, Event, Joined, Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.guard import Guard
from dispy.protocol.identity import describe, new_guard, random_name
from dispy.protocol.keys import Keys
from dispy.protocol.messages import Body
from dispy.protocol.transport import Bus

PATIENCE_S = 30.0
Kind = TypeVar("Kind", bound=Body)


class Peer:
    """In a session with whoever is at an address. ``change`` is done to its exchange before."""

    def __init__(
        self,
        role: str,
        address: str,
        keys: Keys | None = None,
        guard: Guard | None = None,
        cpus: int = 0,
        change: Callable[[Exchange], None] = lambda exchange: None,
    ) -> None:
        self.bus = Bus(keys)
        guard = guard or new_guard(keys)
        who = describe(role, "0", name=f"hostile {role}", cpus=cpus, token=guard.token)
        self.exchange = Exchange(who, self.bus, random_name, guard=guard)
        change(self.exchange)
        self.events: list[Event] = []
        self.peer = ""
        self.exchange.dial(address)

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.peer:
            self.exchange.goodbye(self.peer)
        self.bus.close()

    def pump(self, seconds: float = 0.05) -> None:
        """Send and receive for a while, or until something has come."""
        now = time.monotonic()
        self.events += self.exchange.tick(now)
        self.exchange.flush(now)
        for arrival in self.bus.poll(seconds):
            self.events += self.exchange.receive(arrival, time.monotonic())
        self.exchange.flush(time.monotonic())

    def until(self, condition: Callable[[], object], what: str) -> None:
        """Go on until something holds; fail if it takes too long."""
        deadline = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < deadline, f"not yet: {what}; {self.events[-5:]}"
            self.pump()

    def join(self) -> str:
        """Wait until registered; return the other's instance."""
        self.until(lambda: any(isinstance(each, Joined) for each in self.events), "a session")
        self.peer = next(each.peer for each in self.events if isinstance(each, Joined))
        return self.peer

    def refusal(self) -> str:
        """Wait until refused; return why."""
        self.until(lambda: any(isinstance(each, DialFailed) for each in self.events), "a refusal")
        return next(each.reason for each in self.events if isinstance(each, DialFailed))

    def say(self, message: Body) -> None:
        """Send a message."""
        self.exchange.send(self.peer, message)

    def hear(self, kind: type[Kind]) -> Kind:
        """Wait for a message of a kind and take it out."""
        heard: list[Kind] = []

        def has_come() -> bool:
            for event in self.events:
                if isinstance(event, Received) and isinstance(event.message, kind):
                    heard.append(event.message)
                    self.events.remove(event)
                    return True
            return False

        self.until(has_come, kind.__name__)
        return heard[0]

    def has_left(self) -> bool:
        """Whether the other has ended the session."""
        self.pump()
        return self.peer not in self.exchange.links
