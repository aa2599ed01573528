"""The tests' nodes, played behind relays.

``DISPY_TEST_RELAY=1`` does so with all nodes that fixtures start, ``=2`` with two relays for each,
one behind the other; together with ``DISPY_TEST_SHARED=1`` also for brokers of their own process.
A node says that its address is the relay's, so tests name it as ever. What can't be there is
marked with `direct_only`, and with the reason. With ``=subnets`` the two relays and the nodes are
in subnets of their own, see `apart`; that needs ``DISPY_TEST_SECRET=1``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest

from dispy.broker.setups import ONLY_A_RELAY
from tests.network.namespaces import Host

from . import apart
from .processes import NOTHING_MORE, NodeProcess, free_port
from .relays import RelayProcess

COUNT = 2 if apart.IS_WANTED else int(os.environ.get("DISPY_TEST_RELAY") or 0)
BROKER = "--broker"

# Reasons for `direct_only`.
ONE_AT_A_TIME = "a relay works for one program at a time, a node of its own for another one"
BOTH_WAYS = "a node that dials through relays is dialled here without them"
OWN_PORT = "it's about the port where the node itself listens"
OWN_PEERS = "it is about who talks with whom, and has its own relays where it wants any"


def direct_only(reason: str) -> pytest.MarkDecorator:
    """Mark what doesn't hold for nodes behind relays."""
    return pytest.mark.direct_only(reason)


def without_hints(said: str) -> str:
    """Leave out that a relay is where a node was looked for: here that is so on purpose."""
    lines = said.splitlines(keepends=True)
    return "".join(line for line in lines if not COUNT or ONLY_A_RELAY not in line)


class Way(NamedTuple):
    """How a node is reached."""

    own_port: int
    relays: list[RelayProcess]  # the farthest from the node first
    for_proxy: str  # an address of the node, too


_ways: dict[int, Way] = {}  # by the port at which the node is dialled


class RelayedNode(NodeProcess):
    """A node behind relays, which are there as long as anything is started at its port."""

    def __init__(
        self,
        folder: Path,
        *options: str,
        cpus: int = 2,
        port: int = 0,
        through: Sequence[str] = (),
        environment: Mapping[str, str] = NOTHING_MORE,
    ) -> None:
        if apart.IS_WANTED:
            through = (*apart.row().node.through, *through)
            environment = {"DISPY_HOST": apart.before(apart.row().node), **environment}
        dials = BROKER in options
        new = Way(port if dials else 0, [], f"{apart.HERE}:{free_port(host=apart.HERE)}")
        own_port, relays, for_proxy = _ways.get(port, new)
        more = list(options)
        if dials:
            at = more.index(BROKER) + 1
            relays = relays or _towards(folder, more[at], environment)
            more[at] = relays[-1].for_nodes
        else:
            port = port or _free_port(_hosts()[0]) + 1
            more += ["--ext-host", f"{apart.NODES}:{port}", "--ext-host", for_proxy]
        super().__init__(
            folder, *more, cpus=cpus, port=own_port, through=through, environment=environment
        )
        self.options = options
        own_port = self.port
        if not dials:
            relays = relays or _from(folder, self.address, port, environment)
            self.address = relays[0].address
            self.port = port
            self.for_proxy = for_proxy
        _ways[self.port] = Way(own_port, relays, for_proxy)

    def again(self) -> NodeProcess:
        """Start another node at the same address."""
        folder = self.folder.parent
        return RelayedNode(folder, *self.options, cpus=self.cpus, port=self.port)

    def clear_away(self) -> None:
        """End it by force, and its relays."""
        super().clear_away()
        for relay in _ways.pop(self.port, Way(0, [], "")).relays:
            relay.clear_away()
            assert "Traceback" not in relay.log(), relay.log()


def _towards(folder: Path, broker: str, environment: Mapping[str, str]) -> list[RelayProcess]:
    """Start relays that dial a broker, or each other."""
    relays: list[RelayProcess] = []
    for host in _hosts():
        relay = _start(folder, host, 0, environment, BROKER, broker)
        broker = relay.for_nodes = _dialled(relay.for_nodes, apart.behind(host) if host else None)
        relays.append(relay)
    return relays


def _from(
    folder: Path, node: str, outermost: int, environment: Mapping[str, str]
) -> list[RelayProcess]:
    """Start relays that dial a node, or each other; the farthest is dialled at a given port."""
    relays: list[RelayProcess] = []
    for host in reversed(_hosts()):
        port = outermost - 1 if len(relays) == COUNT - 1 else 0
        relay = _start(folder, host, port, environment, "-n", node)
        node = relay.address = _dialled(relay.address, apart.before(host) if host else None)
        relays.insert(0, relay)
    return relays


def _hosts() -> Sequence[Host | None]:
    """Where the relays are, the farthest from the node first; None: here."""
    return (apart.row().outer, apart.row().inner) if apart.IS_WANTED else [None] * COUNT


def _start(
    folder: Path, host: Host | None, port: int, environment: Mapping[str, str], *options: str
) -> RelayProcess:
    if host is None:
        return RelayProcess(folder, *options, port=port, environment=environment)
    everywhere = {**environment, "DISPY_HOST": "*"}
    port = port or _free_port(host)
    return RelayProcess(folder, *options, port=port, through=host.through, environment=everywhere)


def _free_port(host: Host | None) -> int:
    with host.inside() if host else nullcontext():
        return free_port(1, "" if host else "127.0.0.1")


def _dialled(address: str, host: str | None) -> str:
    """Return where a relay that listens at all addresses of its host is dialled."""
    return address.replace("*", host) if host else address


NewNode: type[NodeProcess] = RelayedNode if COUNT else NodeProcess
