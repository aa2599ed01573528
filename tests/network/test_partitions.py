"""Hosts that can't hear each other for a while: nothing is lost, nothing runs twice.

DISPY_TEST_NETWORK=1 has longer partitions, in one direction as well, and everywhere.
"""

from __future__ import annotations

import time

import pytest

from .lans import FULL, Running, ended_well, ran_once
from .namespaces import Host, Network, partition

BACK_S = 5.0  # from the end of a partition until jobs begin again, on a busy machine
COUNT = 500  # jobs; nodes that are cut off hold few of them
WAYS = {"both": (True, True), "there": (True, False), "back": (False, True)}
CASES = [("node", 4.5, "both"), ("client", 1.0, "both")]
if FULL:
    CASES = [
        (where, seconds, ways)
        for where in ("node", "client", "embedded")
        for seconds in (1.0, 5.0, 30.0)
        for ways in WAYS
    ]


@pytest.fixture
def hosts(network: Network) -> tuple[Host, Host, Host]:
    """Hosts for a client, a broker and a node."""
    lan = network.subnet("lan")
    names = ("client", "broker", "node")
    for number, host in enumerate(made := [network.host(name) for name in names], 1):
        host.join(lan, f"10.1.0.{number}/24", f"fd00:1::{number}/64")
    client, broker, node = made
    return client, broker, node


@pytest.mark.timeout(240)
@pytest.mark.parametrize(("where", "seconds", "ways"), CASES)
def test_a_partition_loses_and_repeats_nothing(
    running: Running, hosts: tuple[Host, Host, Host], where: str, seconds: float, ways: str
) -> None:
    client, broker, node = hosts
    running.node(node)
    if where == "embedded":  # the broker is in the program
        program = running.many(client, COUNT, 0.01, nodes=[node.address], pulse_interval=10.0)
        ends = client, node
    else:
        running.broker(broker, "-n", node.address, "--pulse-interval", "10")
        program = running.many(client, COUNT, 0.01, scheduler_node=broker.address)
        ends = (broker, node) if where == "node" else (broker, client)
    running.until_begun(50)
    partition(*ends, *WAYS[ways])
    time.sleep(seconds)  # that long it is
    before = running.begun()
    for end in ends:
        end.heal()
    if where != "client":  # without it, jobs go on
        begin = time.monotonic()
        running.until_begun(before + 1)
        back_s = time.monotonic() - begin
        print(f"back after {back_s:.2f} s")
        assert back_s < BACK_S
    ended_well(program)
    ran_once(running.record, COUNT)
