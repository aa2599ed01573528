"""The node's shell: sockets, processes, files and clock around the agent. It decides nothing.

The launcher starts the zygote before this module is imported, since importing it loads
ZeroMQ: no job process may ever hold a descriptor of the node's sockets.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dispy.protocol import listening
from dispy.protocol.discovery import BROKER_PORT, Discovery
from dispy.protocol.errors import ProtocolError
from dispy.protocol.events import Away, Back, DialFailed, Event, Joined, Left, Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.fetching import STORE_BYTES
from dispy.protocol.identity import describe, new_guard, random_name
from dispy.protocol.logs import Seldom
from dispy.protocol.messages import Identity
from dispy.protocol.seeking import Face, Stance
from dispy.protocol.sockets import room_for_payloads
from dispy.protocol.store import SpoiledBlob, Store, idle_bytes
from dispy.protocol.transport import Bus

from . import processevents
from .core import KEEP_S, Agent
from .effects import (
    Acknowledge,
    ClearFiles,
    DefineLayers,
    Destroy,
    DropBlob,
    Effect,
    FollowOutput,
    Give,
    Goodbye,
    Interrupt,
    KeepPiece,
    Leave,
    Measure,
    Put,
    Retire,
    Revoke,
    Send,
    Spawn,
    StartTemplate,
    StopTemplate,
    TellTime,
    Terminate,
)
from .launcher import Launcher
from .service import Hours
from .vitals import Gauge

log = logging.getLogger("dispy.node")
SETTLE_S = 0.1  # how long results of jobs that have ended may take, when the node is stopped
CLOSE_S = 4.0  # to end all processes when the node is stopped
PROCESS_TICK_S = 0.1  # how often the output of running jobs is looked at
REFUSALS_MAX = 20  # a broker that is away for months doesn't fill the log


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    software: str
    name: str
    cpus: int
    doors: tuple[str, ...]  # "host:port" to listen at; empty: no door of its own
    broker: str  # "host:port" to dial; empty: wait to be dialled
    blobs: Path  # the store's folder
    files: Path  # where the folders of computations are
    max_file_bytes: int = 0  # larger files are refused; 0: none are
    hours: Hours | None = None  # of the day in which jobs are taken; None: all
    serves: int = -1  # so many clusters, then it stops; negative: any number
    keep_s: float = KEEP_S  # a broker that is away for so long is given up
    ext_hosts: tuple[str, ...] = ()  # by which others reach this machine, if they differ
    ping_interval_s: float = 0.0  # how often brokers are looked for in the end; 0: not
    multicast: bool = False  # look for them by multicast, not by broadcast


def time_of_day() -> int:
    """Return the seconds since midnight, as a clock on the wall here shows them."""
    local = time.localtime()
    return local.tm_hour * 3600 + local.tm_min * 60 + min(local.tm_sec, 59)


class NodeDaemon:
    """Runs an `Agent` on a `Bus` and a `Launcher` until `stop` is called."""

    def __init__(self, settings: Settings, launcher: Launcher, bus: Bus) -> None:
        self.bus = bus
        self.launcher = launcher
        self.workers = launcher.workers
        self.store = Store(settings.blobs)
        self.gauge = Gauge(settings.files)
        self.agent = Agent(
            settings.cpus,
            time.time() - time.monotonic(),
            idle_bytes(settings.blobs, STORE_BYTES),
            settings.max_file_bytes,
            settings.hours,
            settings.serves,
            settings.keep_s,
        )
        self.settings = settings
        self.doors = listening.listen(bus.listen, settings.doors)
        guard = new_guard(bus.keys)
        identity = describe(
            "node",
            settings.software,
            name=settings.name,
            cpus=settings.cpus,
            door=self.doors[0] if self.doors else f"private to {os.getppid()}",
            addresses=listening.addresses_of_doors(self.doors, settings.ext_hosts),
            token=guard.token,
        )
        self.exchange = Exchange(identity, bus, random_name, self._admit, guard, time.time)
        self.exchange.incomplete_max_bytes = room_for_payloads()
        self._discovery = self._begin_discovery()
        # What to do about an effect, whose fields are the arguments.
        self._actions: dict[type[Any], Callable[..., None]] = {
            Give: launcher.workers.give,
            Spawn: launcher.workers.spawn,
            Acknowledge: launcher.workers.acknowledge,
            FollowOutput: launcher.workers.follow,
            Retire: launcher.workers.retire,
            Interrupt: launcher.workers.interrupt,
            Terminate: launcher.workers.terminate,
            Destroy: launcher.workers.kill,
            StartTemplate: launcher.prepare,
            DefineLayers: launcher.define,
            Put: launcher.put,
            ClearFiles: launcher.clear,
            StopTemplate: launcher.release,
            DropBlob: self.store.drop,
        }
        self._was_free = False
        self._stopping = False
        self._next_look = 0.0
        self._offences = Seldom()
        self._refusals: set[str] = set()  # why there is no broker, each said once until there is

    def stop(self) -> None:
        """Make `run` return soon; from any thread or signal handler."""
        self._stopping = True
        self.bus.wake()

    def run(self) -> None:
        """Serve until stopped; then leave no process, no file and no session behind."""
        while not self._stopping:
            now = time.monotonic()
            for arrival in self.bus.poll(self._deadline() - now):
                self._handle(self.exchange.receive(arrival, time.monotonic()))
            self._round(time.monotonic())
        self._take_back(time.monotonic())
        self.agent.stop()
        self._round(time.monotonic())
        self.launcher.close(CLOSE_S)
        self.store.close()
        if self._discovery is not None:
            self._discovery.close()
        self.bus.close()

    def _deadline(self) -> float:
        deadline = min(self.exchange.deadline(), self.agent.deadline())
        if self._discovery is not None:
            deadline = min(deadline, self._discovery.deadline())
        return min(deadline, self._next_look) if self.agent.is_busy else deadline

    def _round(self, now: float) -> None:
        if self.settings.broker:
            self._dial(now)
        if self._discovery is not None:
            self._seek(self._discovery, now)
        self._handle(self.exchange.tick(now))
        if now >= self._next_look:
            self._next_look = now + PROCESS_TICK_S
            self.workers.tick()
        self._report_processes(now)
        self.agent.tick(now)
        is_settled = False
        while not is_settled:  # a revocation is answered at once
            effects = self.agent.flush(now)
            for effect in effects:
                self._carry_out(effect, now)
            has_news = self._report_processes(now)
            is_settled = not has_news and self.agent.is_settled(effects)
        self.exchange.flush(now)

    def _dial(self, now: float) -> None:
        if self.agent.seeks_home(now):
            self.exchange.dial(self.settings.broker)
        else:
            self.exchange.undial(self.settings.broker)

    # -- finding brokers -------------------------------------------------------------------

    def _begin_discovery(self) -> Discovery | None:
        """Prepare to find brokers, unless the node has one, or nothing to know them by."""
        keys = self.bus.keys
        if keys is None or not self.doors or self.settings.broker:
            return None
        me, brokers = self.exchange.identity, frozenset({"broker", "relay"})
        return Discovery(
            self.bus,
            Face("node", me.instance, tuple(me.addresses), brokers, brokers),
            keys.beacon,
            port=int(self.doors[0].rpartition(":")[2]),
            asks=(BROKER_PORT,),
            hosts=[door.rpartition(":")[0] for door in self.doors],
            follow=self.exchange.dial,
            drop=self.exchange.undial,
            is_known=self.exchange.links.__contains__,
            interval_s=self.settings.ping_interval_s,
            multicast=self.settings.multicast,
        )

    def _seek(self, discovery: Discovery, now: float) -> None:
        """Look for a broker when the node has got nothing to do; let it be seen."""
        if self._stopping:
            return
        is_free = self.agent.is_free(now)
        if is_free and not self._was_free:
            discovery.seek(now)
        elif not is_free:
            discovery.rest()
            discovery.keep_only([self.agent.broker])
        self._was_free = is_free
        discovery.stance = Stance.OPEN if is_free else Stance.BUSY
        discovery.tick(now)

    def _take_back(self, now: float) -> None:
        """The node stops: what has not begun is to run elsewhere, what has ended counts."""
        for worker in self.agent.ahead():
            self.agent.revoked(worker, self.workers.revoke(worker), now)
        until = now + SETTLE_S
        while True:
            self.launcher.receive()
            self.workers.tick()
            self._report_processes(now)
            now = time.monotonic()
            if not self.agent.ahead() or now >= until:
                return
            for arrival in self.bus.poll(until - now):
                self._handle(self.exchange.receive(arrival, time.monotonic()))

    # -- what comes from peers ------------------------------------------------------------

    def _admit(self, identity: Identity) -> str:
        return self.agent.admit(identity, time.monotonic())

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            try:
                self._on_event(event, time.monotonic())
            except ProtocolError as error:
                self._offended(event, error)

    def _on_event(self, event: Event, now: float) -> None:
        if isinstance(event, Received):
            self.agent.receive(event.peer, event.message, now)
        elif isinstance(event, Joined):
            self._on_joined(event, now)
        elif isinstance(event, Back):
            self._refusals.clear()
            log.info("the broker can be reached again")
            self.agent.back(event.peer)
        elif isinstance(event, Away):
            if event.peer == self.agent.broker and self.agent.away_since is None:
                log.info("the broker can't be reached: %s", event.reason)
            self.agent.away(event.peer, now)
        elif isinstance(event, Left):
            log.info("the broker is gone: %s", event.reason or "it said goodbye")
            self.agent.left(event.peer)
            if self._discovery is not None:
                self._discovery.left(event.peer)
        elif isinstance(event, DialFailed):
            self._on_refused(event)

    def _on_joined(self, event: Joined, now: float) -> None:
        self._refusals.clear()
        peer, identity = event.peer, event.identity
        is_home = bool(event.address)
        self.agent.joined(peer, identity, event.undelivered, now, self.gauge.read(), is_home)
        if self.agent.broker == peer:
            log.info("working for %s", identity.name)
        elif peer in self.agent.guests:
            log.info("%s gets the results that were kept for it", identity.name)
        else:
            log.info("%s has to wait: the node works for another", identity.name)

    def _on_refused(self, event: DialFailed) -> None:
        if self._discovery is not None and self._discovery.failed(event.address, event.reason):
            log.debug("broker %s: %s", event.address, event.reason)
        elif event.reason not in self._refusals and len(self._refusals) < REFUSALS_MAX:
            self._refusals.add(event.reason)
            log.warning("broker %s: %s; still trying", event.address, event.reason)

    def _offended(self, event: Event, error: ProtocolError) -> None:
        if isinstance(event, (Received, Joined)):
            if self._offences.allows((event.peer, str(error)), time.monotonic()):
                log.warning("the broker broke the protocol: %s", error)
            self.exchange.goodbye(event.peer, f"protocol error: {error}")
            self.agent.left(event.peer)

    # -- what comes from processes --------------------------------------------------------

    def _report_processes(self, now: float) -> bool:
        """Tell the agent what its processes have said; return whether that was anything."""
        agent = self.agent
        events = self.launcher.take_events()
        for event in events:
            if isinstance(event, processevents.Outcomes):
                agent.outcomes(event.worker, event.results, now)
            elif isinstance(event, processevents.Recorded):
                agent.recorded(event.worker, event.records)
            elif isinstance(event, processevents.WorkerExited):
                output = (event.stdout, event.stderr)
                agent.worker_exited(event.worker, event.started, event.reason, output, now)
            else:
                self._report_template(event)
        return bool(events)

    def _report_template(self, event: processevents.Event) -> None:
        agent = self.agent
        if isinstance(event, processevents.TemplateReady):
            agent.template_ready(event.computation)
        elif isinstance(event, processevents.TemplateFailed):
            agent.template_failed(event.computation, event.reason)
        elif isinstance(event, processevents.TemplateGone):
            agent.template_gone(event.computation)
        elif isinstance(event, processevents.FilePlaced):
            agent.file_placed(event.computation, event.request, event.error)
        elif isinstance(event, processevents.LayerFailed):
            log.error("definitions could not be loaded: %s", event.reason)
        elif isinstance(event, processevents.ShutdownAsked):
            log.info("a computation asks the node to stop")
            agent.shutdown_asked()
        else:
            log.error("the process that starts job processes died; starting it anew")

    # -- what the agent wants -------------------------------------------------------------

    def _carry_out(self, effect: Effect, now: float) -> None:
        if type(effect) is Send:
            self.exchange.send(effect.peer, effect.message)
        elif action := self._actions.get(type(effect)):
            fields: Any = effect
            action(*fields)
        elif isinstance(effect, Revoke):
            self.agent.revoked(effect.worker, self.workers.revoke(effect.worker), now)
        elif isinstance(effect, KeepPiece):
            self._keep_piece(effect)
        elif isinstance(effect, Goodbye):
            self._say_goodbye(effect, now)
        elif isinstance(effect, Measure):
            vitals = self.gauge.read()
            if vitals is not None:
                self.agent.measured(vitals)
        elif isinstance(effect, TellTime):
            self.agent.time_told(time_of_day(), now)
        elif isinstance(effect, Leave):
            self._stopping = True

    def _say_goodbye(self, effect: Goodbye, now: float) -> None:
        link = self.exchange.links.get(effect.peer)
        if effect.keep and link is not None:
            self.agent.kept_for(effect.peer, link.undelivered(), now)
        self.exchange.goodbye(effect.peer, effect.reason)

    def _keep_piece(self, piece: KeepPiece) -> None:
        """Write to the disk; whatever is wrong with it concerns this blob only."""
        digest = piece.digest
        try:
            if piece.offset and not self.store.has_begun(digest):
                return  # an earlier piece of the same moment could not be written
            self.store.write(digest, piece.offset, piece.buffers)
            if piece.last:
                self.store.commit(digest)
                self.agent.blob_kept(digest)
        except SpoiledBlob:
            self.agent.blob_spoiled(digest)
        except OSError as error:
            reason = f"it can't be written at the node: {error.strerror or error}"
            log.warning("blob %s: %s", digest.hex()[:12], reason)
            self.agent.blob_failed(digest, reason)
