"""A broker and a node as they run, with peers in place of sockets: what is said to them is babble.

Their shells are the real ones where they are pure enough, so an exception that leaves a turn would
have ended a daemon.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import msgspec

from dispy.broker.daemon import BrokerDaemon
from dispy.broker.journal import Journal
from dispy.broker.settings import POLICIES, Settings
from dispy.protocol import blobs
from dispy.protocol import messages as m
from dispy.protocol.arrivals import Arrival, Down, HungUp, Up
from dispy.protocol.link import BEAT_S
from dispy.protocol.payload import pack_result

from .babble import ACTIONS, KINDS, Babbler
from .honest import SPEC, Honest
from .liars import ASTRAY, Behind, Clock, Liar, Wire

CONTENTS = [bytes([65 + index]) * (index * 70) for index in range(5)]
FILES = [m.FileSpec(f"f{n}", blobs.digest_of(data), len(data)) for n, data in enumerate(CONTENTS)]
PIECES = [m.BlobPiece(blobs.digest_of(data), 0, data) for data in CONTENTS if data]
RANGES = [m.BlobRange(file.digest, 0, file.size) for file in FILES]
JOB = m.JobSpec(1, 0, b"x")
RETAIN_S = 900.0  # of results that nobody has come for
PATIENCE = 9  # turns in which a job is done


class BrokerUnderFire:
    """A broker with liars for clients and for nodes, and honest ones beside them.

    ``folder``: it has a journal there. ``clock`` is the one of its shell.
    """

    def __init__(self, seed: int, folder: Path, clock: Clock, durable: bool, shared: bool) -> None:
        self.chance = random.Random(seed)
        self.babbler = Babbler(self.chance, lies=0.0)
        self.wire = Wire()
        self._folder = folder
        self._settings = Settings(
            durable=durable,
            shared=shared,
            policy=self.chance.choice(POLICIES),
            loaded_jobs=self.chance.choice((4, 20_000)),
            max_file_bytes=self.chance.choice((0, 200)),
            retain_s=RETAIN_S,
        )
        self.clock = clock
        self.daemon = self._start()
        self._names = self._jobs = 0
        self.liars: list[Liar] = []
        self.handlers = list(self.daemon.scheduler.HANDLERS)
        self.restarts = 0
        self.beside = [self._honest("client"), self._honest("node")]
        self.enter_all()

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
        self.restarts += 1
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

    def enter_all(self) -> None:
        """Have liars of all kinds come."""
        for role in ("client", "client", "relay", "node", "node", "node"):
            self._enter(role)

    def _honest(self, role: str) -> Honest:
        self._names += 1
        name = f"honest {role} {self._names}"
        cpus = 2 if role == "node" else 0
        who = m.Identity(role, name, name, "0", "3.11.7", "Linux", cpus, name, "127.0.0.1:9701")
        return Honest(self.wire, who, self.chance)

    def _enter(self, role: str) -> None:
        self._names += 1
        name = f"{role}{self._names}"
        place = self.chance.choice(("", name, "place"))
        cpus = self.chance.choice((1, 2, 3)) if role == "node" else 0
        who = m.Identity(role, name, name, "0", "3.11.7", "Linux", cpus, place, "127.0.0.1:9701")
        if self.chance.random() < self.babbler.lies:
            who = msgspec.structs.replace(self.babbler.message(m.Identity), role=role)
        relays = [each for each in self.liars if each.identity.role == "relay" and each.is_in]
        if role == "node" and relays and self.chance.random() < 0.5:
            liar = self._behind(self.chance.choice(relays), who, name)
        else:
            liar = Liar(self.wire, who, self.babbler, name)
        self.liars.append(liar)
        self.turn([liar.hello()])

    def step(self) -> None:
        """Have one of them say something, or come anew if it was dismissed."""
        chance = self.chance
        self.clock.now += chance.choice((0.0, 0.001, 0.01, 0.3))
        if self._settings.durable and chance.random() < 0.003:
            self.restart()
        if chance.random() < 0.01:
            self.clock.now += chance.choice((2.0, 30.0, 90.0))
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
        if self.babbler.spoils and chance.random() < ASTRAY:
            arrivals.append(liar.astray())
        self.turn(arrivals)

    def turn(self, arrivals: list[Arrival]) -> None:
        """One turn of the daemon, and those that follow from what the honest ones say to it."""
        self.daemon.turn(arrivals, self.clock.now)
        while words := [each for each in map(self._next_word, self.beside) if each is not None]:
            self.daemon.turn(words, self.clock.now)

    def _next_word(self, honest: Honest) -> Arrival | None:
        return honest.next_word(self.clock.now)

    def dismiss(self) -> None:
        """Have all of them leave."""
        self.turn([liar.goodbye() for liar in self.liars])
        self.liars.clear()
        self.wire.sent.clear()

    def run_a_job(self) -> bool:
        """Have a job done for the honest client; say whether it comes through.

        There is a new node for that: a liar may have had the other set aside, as clients can.
        """
        client, *_ = self.beside
        self.beside.append(node := self._honest("node"))
        before = len(client.results)
        self._jobs += 1
        opened = m.OpenCluster(self._jobs, SPEC, [m.NodeSpec("*")])
        client.owe(opened, m.Submit(self._jobs, [JOB]))
        self.turn([])
        for _ in range(PATIENCE):
            self.clock.now += BEAT_S
            self.turn([])
        client.owe(m.CloseCluster(self._jobs))
        self.turn([])
        self.beside.remove(node)
        self.turn([node.goodbye()])
        return len(client.results) == before + 1

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
