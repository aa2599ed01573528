"""Relays that are told nothing find brokers on one side of them, and nodes on the other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.end_to_end.processes import BrokerProcess, Marked, NodeProcess
from tests.end_to_end.relays import RelayProcess
from tests.end_to_end.waiting import until

from .namespaces import Host, Network

PROGRAM = """
import dispy, json, sys
def where(number):
    return dispy_node_name
cluster = dispy.JobCluster(where, **json.loads(sys.argv[1]))
print(cluster.submit(1)(), flush=True)
sys.stdin.read()
cluster.close()
"""


def has_answered(program: Marked) -> bool:
    return program.output() == "far\n"


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPY_SECRET", "a secret for two subnets")
    monkeypatch.setenv("DISPY_SECRET_FILE", "")


@pytest.fixture
def hosts(network: Network) -> tuple[Host, Host, Host]:
    """Return a host of each of two subnets, and one between them that forwards nothing."""
    near, far = network.subnet("near"), network.subnet("far")
    user, between, worker = (network.host(name) for name in ("user", "between", "worker"))
    user.join(near, "10.1.0.2/24")
    between.join(near, "10.1.0.1/24")
    between.join(far, "10.2.0.1/24")
    worker.join(far, "10.2.0.2/24")
    return user, between, worker


def test_a_broker_gets_nodes_of_another_subnet(
    hosts: tuple[Host, Host, Host], tmp_path: Path, run: Callable[[Marked], Marked]
) -> None:
    user, between, worker = hosts
    run(NodeProcess(tmp_path, "--name", "far", cpus=1, port=9701, through=worker.through))
    run(RelayProcess(tmp_path, port=9700, through=between.through))
    broker = BrokerProcess(tmp_path, "--no-journal", port=9700, through=user.through)
    run(broker)
    until(lambda: "node 'far' joined" in broker.log(), "the node behind the relay")


def test_a_program_gets_nodes_of_another_subnet(
    hosts: tuple[Host, Host, Host], tmp_path: Path, run: Callable[[Marked], Marked]
) -> None:
    user, between, worker = hosts
    relay = RelayProcess(tmp_path, port=9700, through=between.through)
    run(relay)
    run(NodeProcess(tmp_path, "--name", "far", cpus=1, port=9701, through=worker.through))
    options = json.dumps({"nodes": "*"})
    command = [*user.through, sys.executable, "-c", PROGRAM, options]
    for _ in range(2):  # the relay and the node are free again after it
        program = Marked(command, tmp_path, stdin=subprocess.PIPE)
        run(program)
        until(partial(has_answered, program), "a result")
        assert program.process.stdin is not None
        program.process.stdin.close()
        assert program.wait(30.0) == 0, program.log()
        until(lambda: "is gone" in relay.log(), "its end")
