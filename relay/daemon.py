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

AHEAD = 8  # messages of each child that may be read before it is their turn; up to 2 MiB
NEWS_SAME_MAX = 20  # a broker that is away for months doesn't fill the log
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
        self.relay = Relay(identity, bus, random_name, FileShelf, guard)
        self.relay.exchange.tell_time = time.time
        if settings.broker:
            self.relay.dial_up(settings.broker)
        for address in settings.nodes:
            self.relay.dial_down(address)
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
        self.relay.stop()
        self.relay.flush(time.monotonic())
        self.bus.close()

    def _turn(self) -> None:
        relay = self.relay
        arrivals = self.bus.poll(relay.deadline() - time.monotonic())
        now = time.monotonic()
        for arrival in arrivals:
            relay.receive(arrival, now)
        relay.tick(now)
        relay.flush(now)
        self._hold_back()
        if relay.news:
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

    def _log_news(self) -> None:
        news, self.relay.news = self.relay.news, []
        for each in news:
            if not each.is_warning:
                self._said.clear()
                log.info("%s", each.text)
            elif each.text not in self._said and len(self._said) < NEWS_SAME_MAX:
                self._said.add(each.text)
                log.warning("%s", each.text)
