"""The broker's shell: sockets, disk and clock around the scheduler. It decides nothing.

What is to be kept is on disk before anything is sent that is based on it, acknowledgements
included: a step takes in all that has arrived, commits once, and only then speaks. So after a
`kill -9` at any moment the others still have whatever the disk hasn't.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from dispy.protocol.arrivals import Arrival
from dispy.protocol.discovery import BROKER_PORT, NODE_PORT, Discovery
from dispy.protocol.errors import ProtocolError
from dispy.protocol.events import Away, Back, DialFailed, Event, Joined, Left, Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.guard import Door, Guard
from dispy.protocol.identity import describe, new_token, random_name
from dispy.protocol.keys import Keys
from dispy.protocol.logs import Seldom
from dispy.protocol.messages import DOCTOR, SERIALS, Identity
from dispy.protocol.seeking import Face, Stance
from dispy.protocol.sockets import room_for_payloads
from dispy.protocol.transport import Bus

from .core import Scheduler
from .crashpoints import crashpoint
from .effects import (
    BlobErrand,
    Dial,
    Effect,
    Forget,
    Goodbye,
    JournalEffect,
    KeepCluster,
    KeepNode,
    Load,
    LoadResults,
    Seek,
    Send,
    Undial,
)
from .settings import Settings
from .state import About

if TYPE_CHECKING:  # both are only loaded where they are used
    from .bloberrands import BlobErrands
    from .journal import Journal

JOURNAL_EFFECTS = frozenset(get_args(JournalEffect))
BLOB_ERRANDS = frozenset(get_args(BlobErrand))
SERIAL_BITS = 16  # of a computation's number, which count those of one start of a broker
PAUSE_S = 3.0  # a turn that is so late: the process was stopped, or the disk was full
READ_S = 0.02  # how soon to look again whether a client has room for more results
SOUGHT_S = 5.0  # who has nodes looked for asks for them within this time
LOOK_S = 1.0  # how often the room on the disk is looked at
log = logging.getLogger("dispy.broker")


class BrokerDaemon:
    """Runs a `Scheduler` on a `Bus`, step by step; with a `Journal` it remembers all.

    ``doors`` are what the bus listens for, in the same order; by default there is one, for its own
    keys. ``addresses`` are where nodes can dial it, for them to know. Unless it ``reaches_out`` it
    dials nobody on other machines, whoever asks it to. A shared broker has its
    copies of files in ``folder``; when they are ``synced``, they survive a power failure. While the
    disk is full to the last byte, nothing is said and nothing is heard. Raises `JournalBroken` from
    `step` when nothing can be kept any more; what was to be said then has not been said.
    """

    _turned_at = float("inf")  # when the last turn began

    def __init__(
        self,
        bus: Bus,
        software: str,
        name: str = "",
        settings: Settings | None = None,
        journal: Journal | None = None,
        folder: Path | None = None,
        synced: bool = False,
        doors: tuple[Door, ...] | None = None,
        addresses: Sequence[str] = (),
        reaches_out: bool = True,
    ) -> None:
        self.bus = bus
        self._reaches_out = reaches_out
        self.journal = journal
        self.folder = folder
        self.stopping = False
        offset_s = time.time() - time.monotonic()
        self.scheduler = Scheduler(_first_id(journal is not None), settings, offset_s)
        # With a journal it is the same broker to the others after a restart.
        self.token = new_token() if journal is None else journal.token
        identity = describe("broker", software, name=name, token=self.token, addresses=addresses)
        guard = Guard(self.token, bus.keys, doors)
        self.exchange = Exchange(identity, self.bus, random_name, self._admit, guard, time.time)
        self.exchange.incomplete_max_bytes = room_for_payloads()
        self._offences = Seldom()
        self._errands: BlobErrands | None = None
        if folder is not None:
            from .ballast import BALLAST_BYTES, HIGH_WATER
            from .bloberrands import BlobErrands

            spare = HIGH_WATER * BALLAST_BYTES if journal is not None else 0
            self._errands = BlobErrands(
                folder / "files", self.scheduler, self.exchange.send, synced, spare
            )
        self._reads: list[LoadResults] = []  # to be done when their clients have room for more
        self._discovery: Discovery | None = None
        self._begin_discovery: Callable[[], Discovery] | None = None
        self._sought_at = -SOUGHT_S
        self._look_at = 0.0
        self._since = time.time()

    def restore(self) -> None:
        """Go on where the journal ends; with one, to be called before the first step."""
        if self.journal is not None:
            self.scheduler.restore(self.journal.load(), time.monotonic())
            self._round(time.monotonic())

    def stop(self) -> None:
        """Say that `step` needn't be called again; from a signal handler, too."""
        self.stopping = True
        self.bus.wake()

    def step(self, timeout_s: float) -> None:
        """Wait for something to do, at most so many seconds, and do it.

        Whoever only wakes it wants to be heard soon: then there is no turn.
        """
        if self._reads:
            timeout_s = min(timeout_s, READ_S)
        deadline = None
        if timeout_s > 0:  # else when something is due makes no difference
            deadline = self._deadline()
            timeout_s = min(timeout_s, deadline - time.monotonic())
        arrivals = self.bus.poll(timeout_s)
        now = time.monotonic()
        has_news = arrivals or self._reads or self.bus.was_stirred
        if has_news or now >= (self._deadline() if deadline is None else deadline):
            self.turn(arrivals, now)

    def _deadline(self) -> float:
        deadline = min(self.exchange.deadline(), self.scheduler.deadline())
        if self._discovery is not None:
            deadline = min(deadline, self._discovery.deadline())
        return deadline

    def turn(self, arrivals: list[Arrival], now: float) -> None:
        """Take in all that has arrived; then keep what comes of it, and only then speak."""
        if now > self._turned_at + PAUSE_S:
            self.scheduler.paused(now - self._turned_at, now)
        self._turned_at = now
        if self._discovery is not None:
            self._discovery.tick(now)
        if events := self.exchange.tick(now):  # it beats: not to acknowledge what isn't kept
            self._handle(events, now)
        for arrival in arrivals:
            self._handle(self.exchange.receive(arrival, now), now)
        self._round(now)

    def close(self, goodbye: bool = True) -> None:
        """Close the sockets and the journal.

        Say ``goodbye`` first unless the broker is to come back: peers that hear it give up what
        they have of the broker.
        """
        if goodbye:
            for peer in list(self.exchange.links):
                self.exchange.goodbye(peer, "the broker was stopped")
        if self._discovery is not None:
            self._discovery.close()
        self.bus.close()
        if self._errands is not None:
            self._errands.close()
        if self.journal is not None:
            self.journal.close()

    def _round(self, now: float) -> None:
        if now >= self._look_at:
            self._look_at = now + LOOK_S
            self._look(now)
        self.scheduler.tick(now)
        if self._reads:
            self._read_results()
        loading = True
        while loading:
            loading = self._flush(now)
        crashpoint("before-send")
        self.exchange.flush(now)
        crashpoint("after-send")

    def _flush(self, now: float) -> bool:
        """Keep what is to be kept, then do the rest; return whether jobs were loaded."""
        effects = self.scheduler.flush(now)
        if self.journal is not None:
            kept = [effect for effect in effects if type(effect) in JOURNAL_EFFECTS]
            if kept:
                self._keep(self.journal, kept)  # type: ignore[arg-type]
        for effect in effects:
            self._carry_out(effect)
        return self.journal is not None and any([type(effect) is Load for effect in effects])

    def _keep(self, journal: Journal, effects: list[JournalEffect]) -> None:
        from .journalerrors import JournalFull

        while True:
            try:
                journal.apply(effects)
                return
            except JournalFull as error:
                if self.stopping:
                    raise
                log.critical("waiting for room on the disk, and deaf until then: %s", error)
                time.sleep(LOOK_S)
                journal.look(time.monotonic())

    def _look(self, now: float) -> None:
        """Say how large the journal is; take no more jobs while the disk is full."""
        who, journal = self.exchange.identity, self.journal
        where, size = "", 0
        if journal is not None:
            where, size = str(self.folder), journal.size_bytes()
            journal.look(now)
            self._heed(journal)
        self._mind_found(now)
        self.scheduler.state.about = About(who.name, who.software, self._since, where, size)

    # -- finding nodes ---------------------------------------------------------------------

    def allow_discovery(
        self,
        keys: Keys | None,
        doors: Sequence[str],
        interval_s: float = 0.0,
        multicast: bool = False,
        port: int = BROKER_PORT,
    ) -> None:
        """Let nodes be found in the network, from the first `seek` on, and find the broker.

        ``keys`` are those of ``doors``, where nodes dial in; without any nothing is ever done.
        ``port``: the UDP port where nodes ask.
        """
        if keys is not None and self.exchange.identity.addresses:
            self._begin_discovery = partial(
                self._discover, keys, tuple(doors), interval_s, multicast, port
            )

    def _discover(
        self, keys: Keys, doors: Sequence[str], interval_s: float, multicast: bool, port: int
    ) -> Discovery:
        me, nodes = self.exchange.identity, frozenset({"node", "relay"})
        return Discovery(
            self.bus,
            Face("broker", me.instance, tuple(me.addresses), nodes, nodes),
            keys.beacon,
            port=port,
            asks=(),
            hosts=[door.rpartition(":")[0] for door in doors],
            follow=self.exchange.dial,
            drop=self.exchange.undial,
            is_known=self.exchange.links.__contains__,
            interval_s=interval_s,
            multicast=multicast,
        )

    def seek(
        self, ports: Iterable[int] = (), interval_s: float = 0.0, multicast: bool = False
    ) -> None:
        """Look for nodes now, also for those that listen at these ports; it needs a secret."""
        if self._discovery is None and self._begin_discovery is not None:
            self._discovery = self._begin_discovery()
        discovery, now = self._discovery, time.monotonic()
        if discovery is not None:
            discovery.asks.update(ports or ([] if discovery.asks else [NODE_PORT]))
            discovery.interval_s = min(
                filter(None, (discovery.interval_s, interval_s)), default=0.0
            )
            discovery.multicast = discovery.multicast or multicast
            discovery.stance = Stance.OPEN
            discovery.seek(now)
            self._sought_at = now

    @property
    def answers(self) -> int:
        """How often nodes have said where they are."""
        return 0 if self._discovery is None else self._discovery.answers

    def _mind_found(self, now: float) -> None:
        """Let nodes that were found work for others, once no cluster wants any that match."""
        discovery = self._discovery
        if discovery is None or self.scheduler.state.settings.shared:
            return
        if self.scheduler.wants_any() or now < self._sought_at + SOUGHT_S:
            discovery.stance = Stance.OPEN
            return
        discovery.stance = Stance.SILENT
        discovery.rest()
        if discovery.found:
            self.scheduler.let_go(discovery.found)
            discovery.keep_only([peer for peer in discovery.found if peer in self.scheduler.nodes])

    def _lost(self, peer: str) -> None:
        if self._discovery is not None:
            self._discovery.left(peer)

    def _heed(self, journal: Journal) -> None:
        if journal.trouble != self.scheduler.state.trouble:
            if journal.trouble:
                log.error("no jobs are taken: %s", journal.trouble)
            else:
                log.warning("jobs are taken again: there is room in the journal")
            self.scheduler.set_trouble(journal.trouble)

    def _handle(self, events: list[Event], now: float) -> None:
        for event in events:
            try:
                self._on_event(event, now)
            except ProtocolError as error:
                self._offended(event, error)

    def _on_event(self, event: Event, now: float) -> None:
        scheduler = self.scheduler
        if isinstance(event, Received):
            scheduler.receive(event.peer, event.message, now)
        elif isinstance(event, Joined):
            self._log_joined(event)
            scheduler.joined(
                event.peer,
                event.identity,
                event.undelivered,
                event.address,
                now,
                event.via,
                event.reached,
                event.relay,
            )
        elif isinstance(event, Back):
            scheduler.back(event.peer)
        elif isinstance(event, Away):
            node = scheduler.nodes.get(event.peer)
            if node is not None and node.online:  # else it has been said
                self._log_node(event.peer, f"can't be reached: {event.reason}")
            scheduler.away(event.peer, event.reason, event.gone, now)
            link = self.exchange.links.get(event.peer)
            if event.gone or (link is not None and link.peer.role == "relay"):  # it holds nothing
                self.exchange.forget(event.peer)
                self._lost(event.peer)
        elif isinstance(event, Left):
            self._on_left(event)
        elif isinstance(event, DialFailed):
            self._log_failure(event)
            if self._discovery is not None:
                self._discovery.failed(event.address, event.reason)
            scheduler.unreachable(event.address, event.reason)

    def _on_left(self, left: Left) -> None:
        if left.offended:
            self._log_offence(left.peer, left.reason)
        self._log_node(left.peer, f"has left: {left.reason}")
        self.scheduler.left(left.peer, left.reason)
        self._lost(left.peer)

    def _log_failure(self, failed: DialFailed) -> None:
        """Warn once of a node that the broker was told to dial; clients are told of theirs."""
        state = self.scheduler.state
        is_new = state.unreached.get(failed.address) != failed.reason
        if is_new and failed.address in state.settings.nodes:
            log.warning("node %s: %s; still trying", failed.address, failed.reason)
        else:
            log.debug("%s: %s", failed.address, failed.reason)

    def _offended(self, event: Event, error: ProtocolError) -> None:
        """A peer said what makes no sense: end its session, serve the others."""
        if isinstance(event, (Received, Joined)):
            self._log_offence(event.peer, f"it broke the protocol: {error}")
            self.exchange.goodbye(event.peer, f"protocol error: {error}")
            self.scheduler.left(event.peer, f"it broke the protocol: {error}")

    def _log_offence(self, peer: str, reason: str) -> None:
        """Say so but seldom: the same one may come back with the same at once."""
        if self._offences.allows((peer, reason), time.monotonic()):
            log.warning("peer %s: %s", peer, reason)

    def _carry_out(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self.exchange.send(effect.peer, effect.message)
        elif type(effect) in JOURNAL_EFFECTS:
            self._log_kept(effect)
        elif type(effect) in BLOB_ERRANDS:
            assert self._errands is not None
            self._errands.carry_out(effect)  # type: ignore[arg-type]
        elif isinstance(effect, (Dial, Undial, Seek)):
            self._reach(effect)
        elif isinstance(effect, Forget):
            self._log_node(effect.peer, "is given up")
            self.exchange.forget(effect.peer)
            self._lost(effect.peer)
        elif isinstance(effect, Goodbye):
            self.exchange.goodbye(effect.peer, effect.reason)
            self._lost(effect.peer)
        elif isinstance(effect, Load):
            assert self.journal is not None
            self.scheduler.loaded(effect.batch, self.journal.read_batch(effect.batch))
        elif isinstance(effect, LoadResults):
            self._reads.append(effect)

    def _reach(self, effect: Dial | Undial | Seek) -> None:
        """Look for nodes, or no longer."""
        if isinstance(effect, Dial):
            self._dial(effect.address)
        elif isinstance(effect, Undial):
            self._let_go_relay(effect.address)
            self.exchange.undial(effect.address)
        else:
            self.seek(effect.ports)

    def _dial(self, address: str) -> None:
        """Clients ask for any address, and a journal may be of times when there was a secret."""
        if self._reaches_out or _is_here(address):
            self.exchange.dial(address)
        else:
            self.scheduler.unreachable(address, "it isn't dialled: this broker has no secret")

    @property
    def _news(self) -> int:
        """Operators have only this log; a program tells its user of nodes by itself."""
        return logging.INFO if self.scheduler.state.settings.shared else logging.DEBUG

    def _log_joined(self, joined: Joined) -> None:
        role, name = joined.identity.role, joined.identity.name
        where = f", behind relay {joined.via!r}" if joined.via else ""
        if role != "client":
            log.log(self._news, "%s %r joined%s", role, name, where)

    def _let_go_relay(self, address: str) -> None:
        """A relay that no cluster asks for any more may work for others, unless its nodes do."""
        relay = self.exchange.relay_at(address)
        peers = self.exchange.peers_via(relay)
        nodes = [self.scheduler.nodes[each] for each in peers if each in self.scheduler.nodes]
        if not relay or any(node.allocations for node in nodes):
            return
        for peer in (*peers, relay):
            self.exchange.goodbye(peer, "no cluster needs it any more")
            self.scheduler.left(peer, "its relay was let go")

    def _log_node(self, peer: str, what: str) -> None:
        link = self.exchange.links.get(peer)
        node = self.scheduler.nodes.get(peer)
        if node is not None:
            log.log(self._news, "node %r %s", node.identity.name, what)
        elif link is not None and link.peer.role != "client":  # forgotten just now, or a relay
            log.log(self._news, "%s %r %s", link.peer.role, link.peer.name, what)

    def _log_kept(self, effect: Effect) -> None:
        """Tell operators what has changed for longer."""
        if isinstance(effect, KeepNode):
            meta = effect.meta
            if meta.set_aside:
                log.warning("node %r is set aside: %s", meta.name, meta.set_aside)
            elif meta.drained:
                log.info("node %r is drained: %s", meta.name, meta.drained)
        elif isinstance(effect, KeepCluster) and effect.meta.expired and effect.opened is None:
            number, user = effect.id % SERIALS, effect.meta.user
            log.warning("cluster %d of %r is given up: its program is away", number, user)

    def _read_results(self) -> None:
        """Read results for clients that have taken in those before: else they'd fill the memory."""
        reads, self._reads = self._reads, []
        for read in reads:
            cluster = self.scheduler.clusters.get(read.cluster)
            if cluster is not None and self.exchange.is_behind(cluster.client.peer):
                self._reads.append(read)
                continue
            assert self.journal is not None
            results = self.journal.read_results(read.record)
            self.scheduler.results_loaded(read.cluster, read.record, results)

    @staticmethod
    def _admit(identity: Identity) -> str:
        if identity.role in ("client", "node", "relay", DOCTOR):
            return ""
        return f"a broker takes clients, nodes and relays, not a {identity.role}"


def _is_here(address: str) -> bool:
    try:
        return ip_address(address.rpartition(":")[0].strip("[]")).is_loopback
    except ValueError:  # a name may mean any machine
        return False


def _first_id(grows: bool) -> int:
    """Return where to count computations from.

    Those of different brokers mustn't be mixed up at a node; those of one that is started again
    grow, since their order counts.
    """
    if not grows:
        return secrets.randbits(40) << SERIAL_BITS
    return (int(time.time() * 1000) << 4 | secrets.randbits(4)) << SERIAL_BITS
