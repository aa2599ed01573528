"""Three subnets in a row, with this process in the first, and no way to the last but by relays.

client | outer relays | inner relays, nodes: each bar is a subnet, and none of the hosts a router.
"""

from __future__ import annotations

import atexit
import functools
import os
from typing import NamedTuple

from tests.network.namespaces import Host, Network, why_not

IS_WANTED = os.environ.get("DISPY_TEST_RELAY") == "subnets"
SUBNETS = ("one", "two", "three")


class Row(NamedTuple):
    """The hosts, the client's first, where this process is."""

    client: Host
    outer: Host
    inner: Host
    node: Host


@functools.cache
def row() -> Row:
    """Make them for this process, which goes there for good; they end with it."""
    if why_not():
        raise RuntimeError(f"tests behind relays in subnets: {why_not()}")
    network = Network()
    atexit.register(network.close)
    one, two, three = (network.subnet(name) for name in SUBNETS)
    hosts = Row(*(network.host(name) for name in Row._fields))
    hosts.client.join(one, "10.1.0.1/24")
    hosts.outer.join(one, "10.1.0.2/24")
    hosts.outer.join(two, "10.2.0.1/24")
    hosts.inner.join(two, "10.2.0.2/24")
    hosts.inner.join(three, "10.3.0.1/24")
    hosts.node.join(three, "10.3.0.2/24")
    hosts.client.enter()
    return hosts


def before(host: Host) -> str:
    """Return the address of a host in the subnet where it is dialled from the client's side."""
    return host.plugs[0].addresses[0]


def behind(host: Host) -> str:
    """Return the address of a host in the subnet where it is dialled from the nodes' side."""
    return host.plugs[-1].addresses[0]


HERE = row().client.address if IS_WANTED else "127.0.0.1"  # where others dial this host
NODES = before(row().outer) if IS_WANTED else "127.0.0.1"  # where nodes are, seen from this host
OWN = before(row().node) if IS_WANTED else "127.0.0.1"  # ... and by their own word

os.environ["DISPY_HOST"] = HERE  # of programs and brokers
