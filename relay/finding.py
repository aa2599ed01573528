"""How a relay finds brokers on one side and nodes on the other, and is found by them.

Two faces, each with a UDP port: to nodes it is like a broker, to brokers like a node. Relays
don't find each other: two idle ones would make a loop, so a chain is said explicitly.
"""

from __future__ import annotations

from collections.abc import Sequence

from dispy.protocol.discovery import BROKER_PORT, NODE_PORT, Discovery
from dispy.protocol.keys import Keys
from dispy.protocol.listening import addresses_of_doors
from dispy.protocol.seeking import Face, Stance
from dispy.protocol.transport import Bus

from .core import Relay

NODES = frozenset({"node"})
BROKERS = frozenset({"broker"})


class Finding:
    """Both faces. Brokers aren't sought by a relay that was told which one to dial."""

    def __init__(
        self,
        relay: Relay,
        bus: Bus,
        keys: Keys,
        lower: Sequence[str],
        upper: Sequence[str],
        ext_hosts: Sequence[str],
        has_home: bool,
    ) -> None:
        """``lower`` and ``upper``: "host:port"s where the relay listens."""
        self._relay = relay
        self._has_home = has_home
        self._had_trunk: bool | None = None  # None: not looked so far
        me = relay.identity.instance
        self._lower = Discovery(
            bus,
            Face("relay", me, tuple(addresses_of_doors(lower, ext_hosts)), NODES, NODES),
            keys.beacon,
            port=_port(lower),
            asks=(NODE_PORT,),
            hosts=_hosts(lower),
            follow=relay.dial_down,
            drop=relay.undial_down,
            is_known=relay.knows,
        )
        self._upper = Discovery(
            bus,
            Face("relay", me, tuple(addresses_of_doors(upper, ext_hosts)), BROKERS, BROKERS),
            keys.beacon,
            port=_port(upper),
            asks=(BROKER_PORT,),
            hosts=_hosts(upper),
            follow=relay.exchange.dial,
            drop=relay.exchange.undial,
            is_known=relay.exchange.links.__contains__,
        )

    def tick(self, now: float) -> None:
        """Seek who is missing: a broker while there is none, nodes whenever there is one."""
        has_trunk = self._relay.trunk is not None
        if has_trunk is not self._had_trunk:
            self._had_trunk = has_trunk
            self._turn_to(has_trunk, now)
        for instance in self._relay.gone:
            self._lower.left(instance)
        self._relay.gone.clear()
        self._lower.tick(now)
        self._upper.tick(now)

    def deadline(self) -> float:
        """When `tick` next has something to do, in seconds of the same clock as ``now``."""
        return min(self._lower.deadline(), self._upper.deadline())

    def failed(self, address: str, reason: str) -> bool:
        """Note that dialling has failed; return whether the address was found here."""
        return self._lower.failed(address, reason) or self._upper.failed(address, reason)

    def close(self) -> None:
        """Close the sockets; to be called before the bus is closed."""
        self._lower.close()
        self._upper.close()

    def _turn_to(self, has_trunk: bool, now: float) -> None:
        self._lower.stance = Stance.OPEN if has_trunk else Stance.SILENT
        self._upper.stance = Stance.BUSY if has_trunk or self._has_home else Stance.OPEN
        if has_trunk:
            self._upper.rest()
            self._upper.keep_only([self._relay.broker])
            self._lower.seek(now)
        else:
            self._lower.rest()
            self._upper.keep_only()
            if not self._has_home:
                self._upper.seek(now)


def _port(doors: Sequence[str]) -> int:
    return int(doors[0].rpartition(":")[2])


def _hosts(doors: Sequence[str]) -> list[str]:
    return [door.rpartition(":")[0] for door in doors]
