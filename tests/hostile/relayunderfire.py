"""A relay between a broker that lies and children that lie, in memory."""

from __future__ import annotations

import random

from dispy.protocol import messages as m
from dispy.protocol.arrivals import Arrived, Down, HungUp, Route, Up
from dispy.protocol.guard import instance_of
from dispy.protocol.identity import random_name
from dispy.protocol.shelf import FileShelf
from dispy.protocol.wire import Codec
from dispy.relay.core import Relay

from .babble import Babbler
from .underfire import Liar, Wire

CHILDREN = 4
PAYLOADS = (b"", b"x" * 10, b"y" * 5000, b"z" * 70_000)


class RelayUnderFire:
    """A relay with one up-link at a time, and some children."""

    def __init__(self, seed: int, lies: float) -> None:
        self.chance = chance = random.Random(seed)
        self.babbler = Babbler(chance, lies)
        self.wire = Wire(carries=True)
        who = m.Identity("relay", "r" * 32, "relay", "0", "3.11", "Linux")
        self.relay = Relay(who, self.wire, random_name, FileShelf)
        self.relay.dial_down("127.0.0.1:9701")
        self.now = 1000.0
        self._codec = Codec()
        self._names = CHILDREN
        self._children = [f"child{number}".encode() for number in range(CHILDREN)]
        self._dialled: list[Route] = []
        self._new_broker()

    def _new_broker(self) -> None:
        self._names += 1
        name = f"broker{self._names}"
        who = m.Identity("broker", name, name, "0", "3.11", "Linux")
        self.broker = Liar(self.wire, who, self.babbler, name)
        self._receive(self.broker.hello())

    def _receive(self, arrival: Arrived | Up | Down | HungUp) -> None:
        self.relay.receive(arrival, self.now)
        self.relay.tick(self.now)
        self.relay.flush(self.now)

    def step(self) -> None:
        """One of them says something; time passes; connections come and go."""
        chance = self.chance
        self.now += chance.choice((0.0, 0.01, 0.3))
        if chance.random() < 0.01:
            self.now += chance.choice((2.0, 6.0, 30.0))
        self.broker.listen()
        if not self.broker.is_in or chance.random() < 0.005:
            self._new_broker()
        kind = chance.randrange(10)
        if kind < 5:
            self._receive(Arrived(self.broker.route, self._from_broker()))
        elif kind < 8:
            self._receive(Arrived(chance.choice(self._speakers()), self._from_child()))
        elif kind == 8:
            self._receive(self.broker.say([]))
        else:
            self._receive(self._from_transport())
        for child in self._children:
            self.wire.take(child)

    def _from_transport(self) -> Up | Down | HungUp:
        """A connection is there, or gone; its route is never used again."""
        chance, wire = self.chance, self.wire
        kind = chance.randrange(4)
        if kind == 0 and wire.dialled:
            self._dialled.append(wire.dialled.pop())
            return Up(self._dialled[-1])
        if kind == 1 and self._dialled:
            return Down(self._dialled.pop(), "gone", chance.random() < 0.5)
        if kind == 2:
            self._names += 1
            place = chance.randrange(CHILDREN)
            gone = self._children[place]
            self._children[place] = f"child{self._names}".encode()
            return Down(gone, "gone")
        return HungUp()

    def _speakers(self) -> list[Route]:
        return [*self._children, *self._dialled]

    def _payloads(self) -> list[m.Buffer]:
        return [self.chance.choice(PAYLOADS) for _ in range(self.chance.randrange(4))]

    def _from_broker(self) -> list[m.Buffer]:
        chance = self.chance
        frames: list[m.Buffer] = []
        for _ in range(chance.choice((1, 1, 1, 2))):
            number = chance.choice((1, 2, 3, 4, 5, 6, -1, 1 << 63))
            event = chance.choice((m.CARRIED, m.CARRIED, *range(7)))
            frames.append(self._codec.encode(m.Relayed(number, event, "why"))[0])
        frames += [self._frame(), *self._payloads()]
        if chance.random() < 0.2:
            left_out = [(chance.choice((0, 1, 2, -1, 9, 1 << 62)), chance.randbytes(16))
                        for _ in range(chance.randrange(4))]  # fmt: skip
            frames.insert(0, self._codec.encode(m.Cached(left_out))[0])
        return frames[: chance.choice((len(frames), chance.randrange(len(frames) + 1)))]

    def _from_child(self) -> list[m.Buffer]:
        return [self._frame(), *self._payloads()][self.chance.random() < 0.01 :]

    def _frame(self) -> bytes:
        """Make up what goes from one end to the other."""
        chance = self.chance
        if chance.random() < 0.3:
            token = chance.randbytes(32)
            role = chance.choice(("node", "node", "relay", "client", "broker", "\x1b"))
            who = m.Identity(role, instance_of(token), "child", "0", "3.11", "Linux", 1)
            hello = m.Hello(chance.choice((1, 1, 9)), 0, who, token=token)
            return self._codec.encode(hello)[0]
        if chance.random() < 0.2:
            return chance.randbytes(chance.randrange(60))
        kinds = (m.Welcome, m.Refused, m.Unknown, m.Goodbye, m.Relayed, m.Cached, m.Nudge)
        return self._codec.encode(self.babbler.message(chance.choice(kinds)))[0]
