"""Which addresses are kept connected, which of them lead to the same peer, when to try again.

Pure state: whoever changes it also tells the transport.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from .arrivals import Route

REDIAL_S = 0.02  # the first pause before dialling again; doubles
REDIAL_MAX_S = 2.0
REFUSED_PAUSE_S = 5.0  # a peer that said no is asked again, but not often
GREETING_S = 3.0  # how long a Hello may stay unanswered
INTRODUCED_MAX = 10_000  # addresses behind relays of which is known who was there
DIALLED_MAX = 10_000  # connections; beyond that nobody whom a relay has dialled is greeted


@dataclass(eq=False)
class Dial:
    """An address that is kept connected."""

    address: str
    route: Route | None = None
    peer: str = ""  # the instance that answered last, or that is expected
    again_at: float = 0.0  # while there is no route: when to try next
    pause_s: float = REDIAL_S
    greeted_at: float | None = None  # waiting for the answer to a Hello since
    expected: str = ""  # the only instance that is wanted there; empty: any
    proven: bool = False  # a peer has answered there
    key: bytes = b""  # ours, on the present connection
    reached: str = ""  # which address has worked, if it stands for several
    waits: bool = False  # connected; says Hello should another address of its group fail
    rivals: list[Dial] = field(default_factory=list)  # its group: one of them is enough

    def pause(self, now: float, pause_s: float) -> None:
        """Try again after this many seconds, or more if that has failed before."""
        self.again_at = now + max(self.pause_s, pause_s)
        self.pause_s = min(self.pause_s * 2, REDIAL_MAX_S)

    def answered(self, peer: str) -> str:
        """A peer has accepted; return the one that did so before."""
        before, self.peer = self.peer, peer
        self.greeted_at, self.pause_s, self.proven = None, REDIAL_S, True
        return before

    def is_unanswered(self, now: float) -> bool:
        """Whether a Hello has waited for its answer for too long."""
        return self.greeted_at is not None and now > self.greeted_at + GREETING_S


class Dials:
    """All of one process, by address and, those that are connected, by route."""

    def __init__(self) -> None:
        self.by_route: dict[Route, Dial] = {}  # also what relays have dialled for us
        self._by_address: dict[str, Dial] = {}
        self._groups: dict[str, list[Dial]] = {}  # dials that lead to the same peer
        self._introduced: dict[str, str] = {}  # who was at an address behind a relay

    def at(self, address: str) -> Dial | None:
        """Return what is kept connected to an address."""
        return self._by_address.get(address)

    def all(self) -> list[Dial]:
        """Return all that is to be kept connected."""
        return list(self._by_address.values())

    def group(self, name: str) -> Sequence[Dial]:
        """Return those that lead to a peer, or are dialled for the group of this name."""
        return self._groups.get(name, ())

    def add(self, address: str, expected: str, group: str) -> bool:
        """Keep an address connected; return whether that is new."""
        if address in self._by_address:
            if not expected:
                self._by_address[address].expected = ""  # wanted now whoever answers
            return False
        group = group or expected
        rivals = self._groups.setdefault(group, []) if group else []
        known = next((each.peer for each in rivals), expected)
        dial = Dial(address, peer=known, expected=expected, rivals=rivals)
        rivals.append(dial)
        self._by_address[address] = dial
        return True

    def remove(self, address: str, expected: str) -> Dial | None:
        """Don't keep it connected, if it is for that instance or ``expected`` is empty."""
        dial = self._by_address.get(address)
        if dial is None or expected not in ("", dial.expected):
            return None
        del self._by_address[address]
        if dial in dial.rivals:
            dial.rivals.remove(dial)
        if not dial.rivals:
            self._groups = {name: group for name, group in self._groups.items() if group}
        return dial

    def connect(self, dial: Dial, route: Route) -> None:
        """The transport has begun to connect it."""
        dial.route = route
        self.by_route[route] = dial

    def disconnect(self, dial: Dial) -> Route | None:
        """It has no connection any more; return the one that it had."""
        route, dial.route = dial.route, None
        if route is not None:
            del self.by_route[route]
        dial.greeted_at = None
        dial.waits = False
        return route

    def introduce(self, route: tuple[Route, int], address: str) -> Dial | None:
        """A relay has dialled an address for us; None: so many are connected already."""
        if len(self.by_route) >= DIALLED_MAX:
            return None
        dial = Dial(address, peer=self._introduced.get(address, ""))
        self.connect(dial, route)
        return dial

    def note_introduced(self, address: str, peer: str) -> None:
        """This peer is at an address behind a relay."""
        self._introduced.pop(address, None)
        self._introduced[address] = peer
        if len(self._introduced) > INTRODUCED_MAX:
            del self._introduced[next(iter(self._introduced))]
