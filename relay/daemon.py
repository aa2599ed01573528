"""The relay's shell: sockets, clock and log around its core. It decides nothing."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial

from dispy.protocol import listening
from dispy.protocol.guard import Door, Guard
from dispy.protocol.identity import describe, new_token, random_name
from dispy.protocol.shelf import FileShelf
from dispy.protocol.transport import Bus

from .core import Relay
from .finding import Finding

AHEAD = 8  # messages of each child that may be read before it is their turn; up to 2 MiB
NEWS_MAX = 20  # a broker that is away for months doesn't fill the log
log = logging.getLogger("dispy.relay")


@dataclass(frozen=True)
class Settings:
    """What the command line says."""

    software: str
    name: str
    lower: tuple[str, ...]  # "host:port"s where nodes dial in
    upper: tuple[str, ...]  # ... and where brokers, and relays nearer to them, do
    broker: str = ""  # "host:port" to dial; empty: wait to be dialled
    nodes: tuple[str, ...] = ()  # "host:port"s to dial
    ext_hosts: tuple[str, ...] = ()  # under which others reach this machine


class RelayDaemon:
    """Runs a `Relay` on a `Bus` until `stop` is called."""

    def __init__(self, settings: Settings, bus: Bus) -> None:
        self.bus = bus
        self.settings = settings
        self.lower = listening.listen(bus.listen, settings.lower)
        self.upper = listening.listen(partial(bus.listen, apart=True), settings.upper)
        guard = Guard(new_token(), bus.keys, (Door(bus.keys), Door(bus.keys)))
        identity = describe(
            "relay",
            settings.software,
            name=settings.name,
            door=self.upper[0],
            addresses=listening.addresses_of_doors(self.upper, settings.ext_hosts),
            token=guard.token,
        )
        self.relay = Relay(identity, bus, random_name, FileShelf, guard, time.time)
        if settings.broker:
            self.relay.dial_up(settings.broker)
        for address in settings.nodes:
            self.relay.dial_down(address)
        self.finding = self._begin_finding()
        self._stopping = False
        self._is_paused = False
        self._said: set[str] = set()  # warnings, each said once until something changes

    def stop(self) -> None:
        """Make `run` return soon; from any thread or signal handler."""
        self._stopping = True
        self.bus.wake()

    def run(self) -> None:
        """Pass on what comes until stopped; then tell both sides."""
        while not self._stopping:
            self._turn()
        if self.finding is not None:
            self.finding.close()
        self.relay.stop()
        self.relay.flush(time.monotonic())
        self.bus.close()

    def _turn(self) -> None:
        relay = self.relay
        deadline = relay.deadline()
        if self.finding is not None:
            deadline = min(deadline, self.finding.deadline())
        arrivals = self.bus.poll(deadline - time.monotonic())
        now = time.monotonic()
        for arrival in arrivals:
            relay.receive(arrival, now)
        if self.finding is not None:
            self.finding.tick(now)
        relay.tick(now)
        relay.flush(now)
        self._hold_back()
        self._log_news()

    def _hold_back(self) -> None:
        """Listen to the trunk only while enough waits to go up it."""
        relay = self.relay
        if relay.is_full and relay.trunk is not None and not self._is_paused:
            self.bus.pause(relay.trunk)
            self._is_paused = True
        elif relay.has_room and self._is_paused:
            self.bus.resume()
            self._is_paused = False

    def _begin_finding(self) -> Finding | None:
        """Prepare to find others, unless there is nothing to know them by."""
        keys, told = self.bus.keys, self.settings
        if keys is None:
            return None
        doors = (self.lower, self.upper)
        return Finding(self.relay, self.bus, keys, *doors, told.ext_hosts, bool(told.broker))

    def _log_news(self) -> None:
        relay = self.relay
        for address, reason in relay.failed:
            if self.finding is None or not self.finding.failed(address, reason):
                self._warn(f"{address}: {reason}; still trying")
        relay.failed.clear()
        for each in relay.news:
            if each.is_warning:
                self._warn(each.text)
            else:
                self._said.clear()
                log.info("%s", each.text)
        relay.news.clear()
        if self.finding is None:
            relay.gone.clear()

    def _warn(self, text: str) -> None:
        if text not in self._said and len(self._said) < NEWS_MAX:
            self._said.add(text)
            log.warning("%s", text)
