"""An in-memory network with the manners of ZeroMQ over TCP, and all of its faults.

Within a direction of a connection frames arrive in order and once, unless a fault was planned:
`Network.tamper` decides for each message. Machines can be cut off from each other in one
direction at a time; what is sent then is held back, and arrives later if the connection lives.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from enum import Enum
from functools import partial

from dispy.protocol.arrivals import Arrival, Arrived, Down, HungUp, Route, Up
from dispy.protocol.messages import Buffer

from .clock import Clock

CONNECT_TIMEOUT_S = 3.0
SWAP_S = 5.0  # a message that is to be overtaken isn't held up for longer
CLOSED = "the connection was closed"


class Fate(Enum):
    """What becomes of one message."""

    ARRIVE = "arrive"
    LOSE = "lose"
    DOUBLE = "double"
    OVERTAKE = "overtake"  # the next one of the same direction arrives before it


class Socket:
    """All connections of one process; implements `arrivals.Transport`."""

    def __init__(self, network: Network, machine: str, address: str = "") -> None:
        self.machine = machine
        self.address = address  # "host:port" where others can dial it
        self.inbox: list[Arrival] = []
        self.alive = True
        self.on_arrival: Callable[[], None] = lambda: None
        self.on_send: Callable[[], None] = lambda: None
        self.ends: dict[Route, End] = {}
        self._network = network
        if address:
            network.doors[address] = self

    def take(self) -> list[Arrival]:
        """Return what has arrived."""
        inbox, self.inbox = self.inbox, []
        return inbox

    def dial(self, address: str) -> Route:
        """Begin to connect; `Up` or `Down` follows."""
        return self._network.dial(self, address)

    def drop(self, route: Route) -> None:
        """Close a dialled connection; an accepted one stays until its dialler closes it."""
        end = self.ends.get(route)
        if isinstance(route, int) and end is not None:
            end.close()

    def send(self, route: Route, frames: list[Buffer]) -> bool:
        """Send without waiting."""
        self.on_send()
        end = self.ends.get(route)
        if end is not None:
            end.send(frames)
        elif isinstance(route, bytes):
            self.arrive(Down(route, CLOSED))
        return True

    def arrive(self, arrival: Arrival) -> None:
        """Put something before the process."""
        if self.alive:
            self.inbox.append(arrival)
            self.on_arrival()

    def die(self, is_machine_lost: bool = False) -> None:
        """The process is gone; the system closes its connections, unless it is gone too."""
        self.alive = False
        if self._network.doors.get(self.address) is self:
            del self._network.doors[self.address]
        for end in list(self.ends.values()):
            if is_machine_lost:
                del self.ends[end.route]
            else:
                end.close()


class End:
    """One side of a connection."""

    other: End

    def __init__(self, network: Network, socket: Socket, route: Route) -> None:
        self.socket = socket
        self.route = route
        self._network = network
        self._last_at = 0.0  # when the last message towards the other side arrives
        self._free_at = 0.0  # when the last message has left this side, if that takes its time
        self._held: list[Buffer] | None = None  # a message that the next one overtakes
        socket.ends[route] = self

    @property
    def is_open(self) -> bool:
        """Whether this side knows nothing of an end."""
        return self.socket.ends.get(self.route) is self

    def close(self) -> None:
        """Close this side; what was sent still arrives, then the other side is told."""
        del self.socket.ends[self.route]
        self._in_order(self.other.hang_up)

    def hang_up(self) -> None:
        """The connection has ended under this side."""
        if self.is_open:
            del self.socket.ends[self.route]
            self.tell_end()

    def tell_end(self) -> None:
        """Tell the process, as far as ZeroMQ does: a listener only hears that somebody left."""
        dialled = isinstance(self.route, int)
        self.socket.arrive(Down(self.route, CLOSED) if dialled else HungUp())

    def send(self, frames: list[Buffer]) -> None:
        """Send a message to the other side."""
        network = self._network
        fate = network.tamper(self, frames)
        network.messages += 1
        held, self._held = self._held, None
        if fate is Fate.OVERTAKE:
            self._held = frames
            network.clock.after(SWAP_S, partial(self._release, frames))
        elif fate is not Fate.LOSE:
            self._deliver(frames)
        if fate is Fate.DOUBLE:
            self._deliver(frames)
        if held is not None:
            self._deliver(held)

    def _release(self, frames: list[Buffer]) -> None:
        if self._held is frames:
            self._held = None
            self._deliver(frames)

    def _deliver(self, frames: list[Buffer]) -> None:
        self._in_order(partial(self.other._on_message, frames), sum(map(len, frames)))

    def _in_order(self, action: Callable[[], None], size: int = 0) -> None:
        """Plan what the other side notices after all that it was sent before."""
        network, ways = self._network, (self.socket.machine, self.other.socket.machine)
        takes_s = size / network.rates[ways] if ways in network.rates else 0.0
        self._free_at = max(self._free_at, network.clock.now) + takes_s
        self._last_at = max(self._last_at, self._free_at + network.lag(*ways))
        network.clock.at(self._last_at, action)

    def _on_message(self, frames: list[Buffer]) -> None:
        if self.is_open:
            self._network.watch(self, frames)
            self.socket.arrive(Arrived(self.route, list(frames)))


class Network:
    """All machines, which doors are open, and what goes wrong between them."""

    def __init__(self, clock: Clock, chance: random.Random) -> None:
        self.clock = clock
        self.doors: dict[str, Socket] = {}
        self.ends: list[End] = []  # the dialling ends of all connections that may be open
        self.messages = 0
        self.tamper: Callable[[End, list[Buffer]], Fate] = lambda end, frames: Fate.ARRIVE
        self.watch: Callable[[End, list[Buffer]], None] = lambda end, frames: None
        self.is_local = False  # a refused connection proves that the process is gone
        self.lag_s = 0.001
        self.rates: dict[tuple[str, str], float] = {}  # from, to: bytes per second, if limited
        self.silent: set[str] = set()  # addresses that don't even refuse: the machine is off
        self._chance = chance
        self._blocked: dict[tuple[str, str], float] = {}  # from, to: until when
        self._last_route = 0

    def lag(self, source: str, target: str) -> float:
        """How long a message takes."""
        held = self._blocked.get((source, target), 0.0) - self.clock.now
        return max(0.0, held) + self.lag_s * (0.5 + self._chance.random())

    def block(self, source: str, target: str, until: float) -> None:
        """Let nothing through in one direction for a while."""
        self._blocked[source, target] = until

    def heal(self) -> None:
        """Nothing is lost, held back or changed any more."""
        self._blocked.clear()
        self.rates.clear()
        self.tamper = lambda end, frames: Fate.ARRIVE

    def dial(self, socket: Socket, address: str) -> Route:
        """Connect, or say why not, after a while."""
        self._last_route += 1
        route = self._last_route
        _Dead(self, socket, route)  # so that it can be dropped meanwhile
        door = self.doors.get(address)
        machine = address if door is None else door.machine
        delay = self.lag(socket.machine, machine) + self.lag(machine, socket.machine)
        if delay >= CONNECT_TIMEOUT_S or address in self.silent:
            failed = Down(route, "timed out")
            self.clock.after(CONNECT_TIMEOUT_S, partial(self._fail, socket, failed))
        else:
            self.clock.after(delay, partial(self._connect, socket, route, address))
        return route

    def _fail(self, socket: Socket, failed: Down) -> None:
        if socket.ends.pop(failed.route, None) is not None:
            socket.arrive(failed)

    def _connect(self, socket: Socket, route: Route, address: str) -> None:
        door = self.doors.get(address)
        if route not in socket.ends:
            return
        if door is None:
            self._fail(socket, Down(route, "connection refused", refused=self.is_local))
            return
        mine = End(self, socket, route)
        mine.other = End(self, door, str(route).encode())
        mine.other.other = mine
        self.ends.append(mine)
        socket.arrive(Up(route))

    def cut(self, end: End, notice_s: tuple[float, float]) -> None:
        """Break a connection, with all that is on its way; each side notices after a while."""
        for side, delay in zip((end, end.other), notice_s, strict=True):
            if side.is_open:
                dead = _Dead(self, side.socket, side.route)
                self.clock.after(delay, dead.hang_up)

    def open_ends(self) -> list[End]:
        """Return the dialling end of each connection that is open on both sides."""
        self.ends = [end for end in self.ends if end.is_open and end.other.is_open]
        return self.ends


class _Dead(End):
    """A side without another one: not connected yet, or it has not noticed that it's cut off."""

    def close(self) -> None:
        """Nobody is there to be told."""
        del self.socket.ends[self.route]

    def send(self, frames: list[Buffer]) -> None:
        """What is sent vanishes."""
        self._network.messages += 1
