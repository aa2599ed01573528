"""Three subnets in a row: relays bring nodes to where there is no route, one behind the other.

client | relay, node | relay behind the first, node behind both
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

import pytest

from .lans import FULL, Running, ended_well, ran_once
from .namespaces import Host, Network, partition

NAMES = ["node1", "node2"]
PARTITIONS_S = (5.0, 30.0) if FULL else (4.0,)


class Row(NamedTuple):
    """The hosts. Each relay's is in two subnets, and none of them is a router."""

    client: Host
    relay1: Host
    node1: Host
    relay2: Host
    node2: Host


@pytest.fixture
def row(network: Network) -> Row:
    """The subnets 10.1.0.*, 10.2.0.* and 10.3.0.*."""
    one, two, three = (network.subnet(name) for name in ("one", "two", "three"))
    row = Row(*(network.host(name) for name in Row._fields))
    row.client.join(one, "10.1.0.1/24")
    row.relay1.join(one, "10.1.0.2/24")
    row.relay1.join(two, "10.2.0.1/24")
    row.node1.join(two, "10.2.0.2/24")
    row.relay2.join(two, "10.2.0.3/24")
    row.relay2.join(three, "10.3.0.1/24")
    row.node2.join(three, "10.3.0.2/24")
    return row


def dial_from_the_client(running: Running, row: Row) -> dict[str, object]:
    """Have all connections made from the client's side; return what its cluster is told."""
    running.node(row.node1)
    running.node(row.node2)
    running.relay(row.relay2, "-n", "10.3.0.2")
    running.relay(row.relay1, "-n", "10.2.0.2", "-n", "10.2.0.3")
    return {"nodes": ["10.1.0.2", "*"], "names": NAMES}


def dial_from_the_nodes(running: Running, row: Row) -> dict[str, object]:
    """Have all connections made towards a broker beside the client."""
    running.broker(row.client, "--pulse-interval", "10")
    running.relay(row.relay1, "--broker", "10.1.0.1")
    running.relay(row.relay2, "--broker", "10.2.0.1")
    running.node(row.node1, "--broker", "10.2.0.1")
    running.node(row.node2, "--broker", "10.3.0.1")
    return {"scheduler_node": "10.1.0.1", "names": NAMES}


WAYS = {"from the client": dial_from_the_client, "from the nodes": dial_from_the_nodes}


@pytest.mark.parametrize("way", WAYS)
def test_nodes_behind_relays_can_do_all_that_others_can(
    running: Running, row: Row, way: str
) -> None:
    cluster = WAYS[way](running, row)
    ended_well(running.features(row.client, **cluster))


@pytest.mark.parametrize("pattern", ["10.2.0.*", "no*1"])  # "*1": also some IPv6 addresses
def test_a_pattern_takes_some_of_the_nodes_behind_relays(
    running: Running, row: Row, pattern: str
) -> None:
    """The program waits for those that it names, and fails if it is given others as well."""
    dial_from_the_client(running, row)
    nodes = ["10.1.0.2", pattern]
    ended_well(running.features(row.client, nodes=nodes, names=["node1"], only=["node1"]))


def test_jobs_behind_relays_outlive_their_program(
    running: Running, row: Row, tmp_path: Path
) -> None:
    """There is no way to the nodes but by the relay, which the recover file names."""
    cluster = dial_from_the_client(running, row)
    running.killed(row.client, tmp_path / "recover", **cluster)
    ended_well(running.recovering(row.client, tmp_path / "recover"))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("seconds", PARTITIONS_S)
def test_a_partition_between_relays_loses_and_repeats_nothing(
    running: Running, row: Row, seconds: float
) -> None:
    cluster = dial_from_the_nodes(running, row)
    program = running.many(row.client, 1000, 0.02, **cluster)
    running.until_begun(50)
    partition(row.relay1, row.relay2)
    time.sleep(seconds)  # that long it is
    row.relay1.heal()
    row.relay2.heal()
    ended_well(program)
    ran_once(running.record, 1000)
