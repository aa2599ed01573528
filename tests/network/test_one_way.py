"""Where connections can be opened in one direction only: ports forwarded as ssh -L and -R do it.

What is on one side of a firewall reaches the other through the forwarder alone.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest

from .lans import Running, ended_well
from .namespaces import Host, Network


class Sides(NamedTuple):
    """Two subnets without a route between them; the gate is on both."""

    near: Host
    gate: Host
    far: Host


@pytest.fixture
def sides(network: Network) -> Sides:
    """A client's host, one with forwarders, and a node's."""
    inside, outside = network.subnet("inside"), network.subnet("outside")
    sides = Sides(*(network.host(name) for name in Sides._fields))
    sides.near.join(inside, "10.1.0.1/24")
    sides.gate.join(inside, "10.1.0.2/24")
    sides.gate.join(outside, "10.2.0.2/24")
    sides.far.join(outside, "10.2.0.3/24")
    return sides


def test_a_broker_in_a_program_dials_a_node_through_a_forwarded_port(
    running: Running, sides: Sides
) -> None:
    running.node(sides.far)
    door = running.forwarder(sides.gate, "10.1.0.2:9701", "10.2.0.3:9701")
    ended_well(running.features(sides.near, nodes=[door]))


def test_a_node_dials_a_broker_through_a_forwarded_port(running: Running, sides: Sides) -> None:
    running.broker(sides.near)
    door = running.forwarder(sides.gate, "10.2.0.2:9700", "10.1.0.1:9700")
    running.node(sides.far, "--broker", door)
    ended_well(running.features(sides.near, scheduler_node="10.1.0.1"))


def test_a_client_dials_a_broker_through_a_forwarded_port(running: Running, sides: Sides) -> None:
    running.broker(sides.far, "-n", "127.0.0.1")
    running.node(sides.far)
    door = running.forwarder(sides.gate, "10.1.0.2:9800", "10.2.0.3:9702")
    ended_well(running.features(sides.near, scheduler_node=door))


def test_a_node_dials_a_program_through_a_forwarded_port(running: Running, sides: Sides) -> None:
    door = running.forwarder(sides.gate, "10.2.0.2:9700", "10.1.0.1:9700")
    running.node(sides.far, "--broker", door)
    ended_well(running.features(sides.near, nodes=["*"], names=["far"]))


def test_a_node_announces_the_address_that_leads_to_it(running: Running, sides: Sides) -> None:
    """What it knows of itself leads nowhere from there, and nobody has dialled what it says."""
    running.broker(sides.near)
    door = running.forwarder(sides.gate, "10.2.0.2:9700", "10.1.0.1:9700")
    running.node(sides.far, "--broker", door, "--ext-host", "10.1.0.2:9801")
    ended_well(running.features(sides.near, scheduler_node="10.1.0.1", nodes=["10.1.0.2"]))
