"""A broker and a node as they run, with peers in place of sockets: what is said to them is babble.

Their shells are the real ones where they are pure enough, so an exception that leaves a turn would
have ended a daemon.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from dispy.broker.daemon import BrokerDaemon
from dispy.broker.journal import Journal
from dispy.broker.settings import POLICIES, Settings
from dispy.protocol import blobs
from dispy.protocol import messages as m
from dispy.protocol.arrivals import Arrival, Arrived, Down, HungUp, Route, Up
from dispy.protocol.errors import ProtocolError
from dispy.protocol.guard import instance_of
from dispy.protocol.payload import pack_result
from dispy.protocol.wire import Codec

from .babble import ACTIONS, KINDS, Babbler

CONTENTS = [bytes([65 + index]) * (index * 70) for index in range(5)]
FILES = [m.FileSpec(f"f{n}", blobs.digest_of(data), len(data)) for n, data in enumerate(CONTENTS)]
PIECES = [m.BlobPiece(blobs.digest_of(data), 0, data) for data in CONTENTS if data]
RANGES = [m.BlobRange(file.digest, 0, file.size) for file in FILES]
JOB = m.JobSpec(1, 0, b"x")
OUT_OF_TURN = 0.01  # how often a whole frame makes no sense


class Wire:
    """In place of a `Bus`: what is sent is decoded and kept by route until somebody takes it."""

    def __init__(self, carries: bool = False) -> None:
        self._carries = carries  # what others have written
        self.sent: dict[Route, list[m.Frame]] = {}
        self.dialled: list[Route] = []
        self.keys = None
        self.public_key = b""
        self._codec = Codec()
        self._routes = 0

    def dial(self, address: str, *_: object) -> Route:
        """Begin to connect."""
        self._routes += 1
        self.dialled.append(self._routes)
        return self._routes

    def listen(self, address: str, *_: object) -> str:
        """Nobody dials in by himself."""
        return address

    def watch(self, *_: object) -> None:
        """There are no descriptors."""

    unwatch = watch

    def drop(self, route: Route) -> None:
        """Close a connection."""
        self.sent.pop(route, None)
        if route in self.dialled:
            self.dialled.remove(route)

    def send(self, route: Route, frames: list[m.Buffer]) -> bool:
        """Keep what is sent: it must be readable, unless a relay passes it on."""
        try:
            frame, _ = self._codec.decode(bytes(frames[0]))
        except ProtocolError:
            assert self._carries
            return True
        if isinstance(frame, m.Relayed) and len(frames) > 1 and isinstance(route, bytes):
            return self.send((route, frame.child), frames[1:])
        self.sent.setdefault(route, []).append(frame)
        return True

    def take(self, route: Route) -> list[m.Frame]:
        """Return what was sent to a peer since the last time."""
        return self.sent.pop(route, [])

    def wake(self) -> None:
        """Nobody waits."""

    def close(self) -> None:
        """Nothing is open."""


class Liar:
    """A peer with a session, that says what it likes in it."""

    def __init__(self, wire: Wire, identity: m.Identity, babbler: Babbler, route: str) -> None:
        self._token = babbler.chance.randbytes(32)
        self.identity = msgspec.structs.replace(identity, instance=instance_of(self._token))
        self.route: Route = route.encode()
        self.is_in = False
        self.heard: list[m.Body] = []
        self._wire = wire
        self._babbler = babbler
        self._codec = Codec()
        self._session = ""
        self._epoch = self._seq = self._received = 0

    def hello(self) -> Arrived:
        """Register, or try to; go on with a session if there was one."""
        chance = self._babbler.chance
        session = self._session if chance.random() < 0.7 else ""
        received = (
            self._received if chance.random() > self._babbler.lies else chance.choice((-1, 9))
        )
        hello = m.Hello(
            m.VERSION_MAJOR, m.VERSION_MINOR, self.identity, session, received, self._token
        )
        return self._arrived(hello)

    def listen(self) -> None:
        """Take in what was said; only the latest is remembered."""
        self.heard.clear()
        for frame in self._wire.take(self.route):
            if isinstance(frame, m.Welcome):
                self.is_in, self._epoch = True, frame.epoch
                self._seq = frame.received
                if frame.session != self._session:
                    self._session, self._received = frame.session, 0
            elif isinstance(frame, m.Envelope):
                self._received = max(self._received, frame.seq)
                self.heard += frame.messages
            elif isinstance(frame, (m.Goodbye, m.Unknown, m.Refused)):
                self.is_in = False

    def say(self, messages: list[m.Body]) -> Arrived:
        """Say something in the session, or something that doesn't belong into one."""
        chance = self._babbler.chance
        if chance.random() < OUT_OF_TURN * self._babbler.lies:
            return self._arrived(self._strange())
        self._seq += 1
        envelope = m.Envelope(self._epoch, self._seq, self._received, messages)
        return self._arrived(envelope)

    def goodbye(self) -> Arrived:
        """Leave."""
        return self._arrived(m.Goodbye())

    def _strange(self) -> m.Frame:
        chance = self._babbler.chance
        kinds: Sequence[Any] = (m.Hello, m.Welcome, m.Refused, m.Unknown, m.Goodbye, m.Envelope)
        kind = chance.choice((*kinds, m.Relayed, m.Cached, m.Nudge))
        frame: m.Frame = (
            self._babbler.message(kind)
            if kind is not m.Envelope
            else m.Envelope(
                self._epoch,
                self._seq + chance.choice((0, 1, 2, 1 << 63)),
                chance.choice((0, -1, 9)),
                [],
            )
        )
        return frame

    def _arrived(self, frame: m.Frame) -> Arrived:
        header, larges = self._codec.encode(frame)
        chunks = [chunk for large in larges for chunk in large.chunks]
        if chunks and self._babbler.chance.random() < OUT_OF_TURN * self._babbler.lies:
            chunks.pop()
        return Arrived(self.route, [header, *chunks])


class Behind(Liar):
    """A peer behind a relay, which lies as well."""

    relay: Liar
    child = 0

    def _arrived(self, frame: m.Frame) -> Arrived:
        said = super()._arrived(frame)
        header, _ = self._codec.encode(m.Relayed(self.child))
        return Arrived(self.relay.route, [header, *said.frames])

    def lose(self) -> Arrived:
        """Have the relay say something about it."""
        chance = self._babbler.chance
        event = chance.choice((*range(7), m.LOST, m.LOST))
        number = chance.choice((self.child, self.child, 1, -1, 1 << 63))
        lost = m.Relayed(number, event, "cache", chance.random() < 0.3)
        return Arrived(self.relay.route, [self._codec.encode(lost)[0]])


class BrokerUnderFire:
    """A broker with liars for clients and for nodes. ``folder``: it has a journal there."""

    def __init__(self, seed: int, lies: float, folder: Path, durable: bool, shared: bool) -> None:
        self.chance = random.Random(seed)
        self.babbler = Babbler(self.chance, lies)
        self.wire = Wire()
        self._folder = folder
        self._settings = Settings(
            durable=durable,
            shared=shared,
            policy=self.chance.choice(POLICIES),
            loaded_jobs=self.chance.choice((4, 20_000)),
            max_file_bytes=self.chance.choice((0, 200)),
        )
        self.now = time.monotonic()
        self.daemon = self._start()
        self._names = 0
        self.liars: list[Liar] = []
        self.handlers = list(self.daemon.scheduler.HANDLERS)
        for role in ("client", "client", "relay", "node", "node", "node"):
            self._enter(role)

    def _start(self) -> BrokerDaemon:
        settings, folder = self._settings, self._folder
        journal = Journal(folder / "journal") if settings.durable else None
        daemon = BrokerDaemon(
            self.wire, "0", "broker", settings, journal,  # type: ignore[arg-type]
            folder if settings.durable or settings.shared else None,
        )  # fmt: skip
        daemon.restore()
        return daemon

    def restart(self) -> None:
        """End the broker and start it again with its journal."""
        self.daemon.close(goodbye=False)
        self.wire.dialled.clear()
        self.daemon = self._start()

    def _behind(self, relay: Liar, who: m.Identity, name: str) -> Liar:
        liar = Behind(self.wire, who, self.babbler, name)
        liar.relay, liar.child = relay, self._names
        liar.route = (relay.route, self._names)
        return liar

    def _return(self, liar: Liar) -> None:
        """Have a liar come back as who it was, over another connection."""
        self._names += 1
        if isinstance(liar, Behind):
            liar.child = self._names
            liar.route = (liar.relay.route, liar.child)
        else:
            liar.route = f"{liar.identity.instance}/{self._names}".encode()
        self.turn([liar.hello()])

    def _enter(self, role: str, *places: str) -> Liar:
        self._names += 1
        name = f"{role}{self._names}"
        place = self.chance.choice(places or ("", name, "place"))
        cpus = self.chance.choice((1, 2, 3)) if role == "node" else 0
        who = m.Identity(role, name, name, "0", "3.11.7", "Linux", cpus, place, "127.0.0.1:9701")
        if self.chance.random() < self.babbler.lies:
            who = msgspec.structs.replace(self.babbler.message(m.Identity), role=role)
        relays = [each for each in self.liars if each.identity.role == "relay" and each.is_in]
        if role == "node" and relays and not places and self.chance.random() < 0.5:
            liar = self._behind(self.chance.choice(relays), who, name)
        else:
            liar = Liar(self.wire, who, self.babbler, name)
        self.liars.append(liar)
        self.turn([liar.hello()])
        return liar

    def step(self) -> None:
        """Have one of them say something, or come anew if it was dismissed."""
        chance = self.chance
        self.now += chance.choice((0.0, 0.001, 0.01, 0.3))
        if self._settings.durable and chance.random() < 0.003:
            self.restart()
        if chance.random() < 0.01:
            self.now += chance.choice((2.0, 30.0, 90.0))
        liar = chance.choice(self.liars)
        liar.listen()
        if not liar.is_in:
            if chance.random() < 0.7:
                self._return(liar)
            else:
                self.liars.remove(liar)
                self._enter(liar.identity.role)
            return
        self._learn(liar)
        arrivals: list[Arrival] = []
        if isinstance(liar, Behind) and chance.random() < 0.05:
            arrivals.append(liar.lose())
        for _ in range(chance.choice((1, 1, 1, 4))):
            arrivals.append(liar.say(self._messages(liar)))
        if self.wire.dialled and chance.random() < 0.5:
            route = self.wire.dialled.pop()
            arrivals.append(chance.choice((Up(route), Down(route, "no", True), HungUp())))
        self.turn(arrivals)

    def turn(self, arrivals: list[Arrival]) -> None:
        """One turn of the daemon."""
        self.daemon.turn(arrivals, self.now)

    def dismiss(self) -> None:
        """Have all of them leave."""
        self.turn([liar.goodbye() for liar in self.liars])
        self.liars.clear()
        self.wire.sent.clear()

    def run_a_job(self) -> bool:
        """Have an honest client and an honest node come; say whether a job comes through."""
        client, node = self._enter("client"), self._enter("node", "a place where nobody was")
        spec = m.ComputationSpec("c", [m.Code("3.11", m.JobSpec(0, 0, b"f"))])
        self._tell(client, m.OpenCluster(1, spec, [m.NodeSpec("*")]), m.Submit(1, [JOB]))
        self._tell(node, m.Holding([], []))
        prepare = next(each for each in node.heard if isinstance(each, m.Prepare))
        self._tell(node, m.Prepared(prepare.computation))
        run = next(each for each in node.heard if isinstance(each, m.Run))
        results = [m.JobResult(job.seq, job.attempt, m.FINISHED, 1.0, 1.5, b"") for job in run.jobs]
        self._tell(node, m.Done(run.computation, results))
        client.listen()
        return any(isinstance(each, m.Results) for each in client.heard)

    def _tell(self, liar: Liar, *messages: m.Body) -> None:
        """Have somebody say something sensible, and hear what is said to it."""
        liar.listen()
        self.turn([liar.say(list(messages))])
        liar.listen()

    def _messages(self, liar: Liar) -> list[m.Body]:
        chance = self.chance
        if liar.identity.role == "relay" and chance.random() < 0.9:
            return []
        kinds = FROM_CLIENT if liar.identity.role == "client" else FROM_NODE
        if chance.random() < self.babbler.lies / 20:
            kinds = KINDS
        count = chance.choice((1, 1, 2, 3))
        return [self.babbler.message(chance.choice(kinds)) for _ in range(count)]

    def _learn(self, liar: Liar) -> None:
        state = self.daemon.scheduler.state
        numbers, seqs, results = [1, 2], list(range(1, 9)), []
        node = state.nodes.get(liar.identity.instance)
        if node is not None and node.allocations:
            numbers = list(node.allocations)
            allocation = self.chance.choice(list(node.allocations.values()))
            if allocation.jobs:
                numbers, seqs = [allocation.cluster.id], list(allocation.jobs)
                results = [self._result(job.spec) for job in allocation.jobs.values()]
        nodes = [node.id for node in state.nodes.values()] or [1]
        self.babbler.likely = {
            "cluster": numbers, "computation": numbers, "number": [1, 2], "seq": seqs,
            "jobs": seqs, "attempt": [1, 1, 1, 2], "node": [*nodes, 0], "status": [9, 11, 11, 8],
            "action": ACTIONS, "owner": [each.identity.instance for each in self.liars],
            "label": ["name", "", "1"], "target": ["1", "name", *map(str, nodes)],
            "pattern": ["*", "127.0.0.1"], "role": ["client", "node"], "priority": [0, 0, 1],
            "records": list(range(1, 9)), "port": [0, 9701], "kind": [1, 2, 3],
            m.FileSpec: FILES, m.BlobPiece: PIECES, m.BlobRange: RANGES,
            m.JobResult: results, "declined": [False], "open": [True, True, False],
            "error": ["", "", "", "", "name"],
        }  # fmt: skip

    def _result(self, job: m.JobSpec) -> m.JobResult:
        status = self.chance.choice((m.FINISHED, m.FINISHED, m.TERMINATED, m.CANCELLED))
        body = self.chance.choice((b"", b"nonsense", pack_result(b"", b"out", b"", "it failed")))
        return m.JobResult(job.seq, job.attempt, status, 1.0, 1.5, body)


FROM_CLIENT: tuple[type[Any], ...] = (
    m.OpenCluster, m.OpenCluster, m.Submit, m.Submit, m.Submit, m.Submit, m.Submit, m.Submit,
    m.CancelJobs, m.CloseCluster, m.FollowJobs, m.NodeRequest, m.Allocate, m.SendFile, m.Explain,
    m.ResultsHeard,
    m.Attach, m.Operate, m.Define, m.RecordsHeard, m.BlobPieces, m.BlobPieces,
)  # fmt: skip
FROM_NODE: tuple[type[Any], ...] = (
    m.Holding, m.Prepared, m.Prepared, m.Prepared, m.Prepared, m.Done, m.Done, m.Done, m.Started,
    m.Returned, m.Released, m.FilePut, m.Service, m.Pulse, m.Records, m.NeedBlobs,
)  # fmt: skip
