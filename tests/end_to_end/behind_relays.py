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
from pathlib import Path

import pytest

from . import apart
from .processes import NOTHING_MORE, NodeProcess
from .relays import RelayProcess, free_pair

MODE = os.environ.get("DISPY_TEST_RELAY") or "0"
IS_APART = MODE == "subnets"
COUNT = 2 if IS_APART else int(MODE)
BROKER = "--broker"

# Reasons for `direct_only`.
BY_ADDRESS = "nodes are known by their own addresses, and named by those of relays here"
ONE_AT_A_TIME = "a relay works for one program at a time, a node of its own for another one"
OTHER_WAY = "only the client's side dials there"
OWN_PROXY = "its own proxy is in the way already, and no node has that address"

_relays: dict[int, list[RelayProcess]] = {}  # by the node's own port, the nearest first


def direct_only(reason: str) -> pytest.MarkDecorator:
    """Mark what doesn't hold for nodes behind relays."""
    return pytest.mark.direct_only(reason)


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
        dials = BROKER in options
        here = "127.0.0.1"
        if IS_APART:
            if dials:
                pytest.skip(OTHER_WAY)
            hosts = apart.row()
            here = hosts.seen(hosts.outer)
            through = (*hosts.node.through, *through)
            environment = {"DISPY_HOST": hosts.seen(hosts.node), **environment}
        relays = _relays.get(port, [])
        near = relays[0].port if relays else free_pair()
        more = list(options)
        if dials:
            at = more.index(BROKER) + 1
            relays = relays or _towards(folder, more[at], environment)
            more[at] = relays[-1].for_nodes
        else:
            more += ["--ext-host", f"{here}:{near + 1}"]
        super().__init__(
            folder, *more, cpus=cpus, port=port, through=through, environment=environment
        )
        self.options = options
        if not dials:
            relays = relays or _from(folder, self.address, near, environment)
            self.address = relays[0].address
        _relays[self.port] = relays

    def again(self) -> NodeProcess:
        """Start another node at the same address."""
        folder = self.folder.parent
        return RelayedNode(folder, *self.options, cpus=self.cpus, port=self.port)

    def clear_away(self) -> None:
        """End it by force, and its relays."""
        super().clear_away()
        for relay in _relays.pop(self.port, []):
            relay.clear_away()
            assert "Traceback" not in relay.log(), relay.log()


def _towards(folder: Path, broker: str, environment: Mapping[str, str]) -> list[RelayProcess]:
    """Start relays that dial a broker, or each other."""
    relays: list[RelayProcess] = []
    for _ in range(COUNT):
        relays.append(RelayProcess(folder, BROKER, broker, environment=environment))
        broker = relays[-1].for_nodes
    return relays


def _from(folder: Path, node: str, near: int, environment: Mapping[str, str]) -> list[RelayProcess]:
    """Start relays that dial a node, or each other; the nearest has a given port."""
    relays: list[RelayProcess] = []
    for left in reversed(range(COUNT)):
        port = 0 if left else near
        relays.insert(0, _dialling(folder, node, port, environment, left))
        node = relays[0].address
    return relays


def _dialling(
    folder: Path, node: str, port: int, environment: Mapping[str, str], left: int
) -> RelayProcess:
    """Start a relay that dials a node, or another relay; ``left``: so many go before it."""
    if not IS_APART:
        return RelayProcess(folder, "-n", node, port=port, environment=environment)
    hosts = apart.row()
    host = hosts.inner if left else hosts.outer
    everywhere = {**environment, "DISPY_HOST": "*"}
    relay = RelayProcess(
        folder, "-n", node, port=port, through=host.through, environment=everywhere
    )
    relay.address = relay.address.replace("*", hosts.seen(host))
    return relay


if IS_APART:
    apart.row()

NewNode: type[NodeProcess] = RelayedNode if COUNT else NodeProcess
