"""A relay between a broker that lies and children that lie, in memory."""

from __future__ import annotations

import random

from dispy.protocol import messages as m
from dispy.protocol.arrivals import Arrived, Down, HungUp, Route, Up
from dispy.protocol.guard import instance_of
from dispy.protocol.wire import Codec
from dispy.relay.daemon import RelayDaemon, Settings

from .babble import Babbler
from .honest import SPEC, Honest
from .liars import ASTRAY, Clock, Liar, Wire

CHILDREN = 4
QUIET_TURNS = 60
PAYLOADS = (b"", b"x" * 10, b"y" * 5000, b"z" * 70_000)


class RelayUnderFire:
    """A relay with one up-link at a time, and some children. ``clock`` is the one of its shell."""

    def __init__(self, seed: int, clock: Clock) -> None:
        self.chance = chance = random.Random(seed)
        self.babbler = Babbler(chance, lies=0.0)
        self.wire = Wire(carries=True)
        doors = ("127.0.0.1:9702",), ("127.0.0.1:9703",)
        settings = Settings("0", "relay", *doors, nodes=("127.0.0.1:9701",))
        self.daemon = RelayDaemon(settings, self.wire)  # type: ignore[arg-type]
        self.relay = self.daemon.relay
        self.clock = clock
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
        self.wire.arrivals.append(arrival)
        self.daemon._turn()

    def step(self) -> None:
        """One of them says something; time passes; connections come and go."""
        chance = self.chance
        self.clock.now += chance.choice((0.0, 0.01, 0.3))
        if chance.random() < 0.01:
            self.clock.now += chance.choice((2.0, 6.0, 30.0))
        self.broker.listen()
        if not self.broker.is_in or chance.random() < 0.005:
            self._new_broker()
        kind = chance.randrange(10)
        if kind < 5:
            self._said(self.broker.route, self._from_broker())
        elif kind < 8:
            self._said(chance.choice(self._speakers()), self._from_child())
        elif kind == 8:
            self._receive(self.broker.say([]))
        else:
            self._receive(self._from_transport())
        for route in [each for each in self.wire.sent if each != self.broker.route]:
            self.wire.take(route)

    def _said(self, route: Route, frames: list[m.Buffer]) -> None:
        """Pass on what somebody says, perhaps spoilt; perhaps somebody else says it spoilt, too."""
        babbler = self.babbler
        self._receive(Arrived(route, babbler.spoil(frames)))
        if frames and babbler.spoils and self.chance.random() < ASTRAY:
            stranger = b"stranger%d" % babbler.spoilt
            self._receive(Arrived(stranger, babbler.spoilt_frames(frames)))
            self._receive(Down(stranger, "gone"))

    def quieten(self) -> None:
        """Have all of them leave, and wait until the relay has given them up."""
        self._receive(self.broker.goodbye())
        for route in self._speakers():
            self._receive(Down(route, "gone"))
        self._dialled.clear()
        for _ in range(QUIET_TURNS):
            self.clock.now += 1.0
            self.daemon._turn()
        self.wire.sent.clear()

    def carry_a_job(self) -> bool:
        """Have an honest broker and an honest node come; say whether a job comes through."""
        self._names += 2
        names = f"honest{self._names}", f"honest{self._names + 1}"
        boss, worker = (
            Honest(self.wire, m.Identity(role, name, name, "0", "3.11", "Linux", 1), self.chance)
            for role, name in zip(("broker", "node"), names, strict=True)
        )
        self._exchange_words(boss)
        self._receive(worker.hello())
        behind = next(route for route in self.wire.sent if isinstance(route, tuple))
        assert isinstance(self.wire.take(behind)[0], m.Hello) and behind[0] == boss.route
        jobs = [m.JobSpec(1, 1, b"x")]
        work: list[m.Body] = [m.Prepare(1, SPEC), m.Run(1, jobs)]
        welcome = m.Welcome(0, boss.identity, "its session", 1, 0)
        for frame in (welcome, m.Envelope(1, 1, 0, work)):
            headers = [self._codec.encode(each)[0] for each in (m.Relayed(behind[1]), frame)]
            self._receive(Arrived(boss.route, [*headers]))
        self._exchange_words(worker)
        envelopes = [each for each in self.wire.take(behind) if isinstance(each, m.Envelope)]
        self._receive(Down(worker.route, "gone"))
        self._receive(boss.goodbye())
        messages = [message for each in envelopes for message in each.messages]
        return any(isinstance(each, m.Done) for each in messages)

    def _exchange_words(self, honest: Honest) -> None:
        while word := honest.next_word(self.clock.now):
            self._receive(word)

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
