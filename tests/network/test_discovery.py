"""Processes with the same secret find each other in a network, and nobody else finds them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.end_to_end.processes import BrokerProcess, Marked, NodeProcess
from tests.end_to_end.waiting import until

from .namespaces import Host, Network

KINDS = ("udp", "udp6")
SECRET = "a secret for a network of tests"
PROGRAM = """
import dispy, json, sys, time
def where(number):
    return dispy_node_name
began = time.monotonic()
cluster = dispy.JobCluster(where, **json.loads(sys.argv[1]))
if len(sys.argv) > 2:
    cluster.discover_nodes(sys.argv[2])
print(sorted({cluster.submit(number)() for number in range(4)}))
print(len(cluster.status().nodes), "nodes", flush=True)
sys.stdin.read()
cluster.close()
"""
SEEKS = """
import os, socket, sys
from dispy.protocol import beacon, secret
def ask(text, nonce):
    asked = beacon.Beacon(beacon.SEEK, "broker", "somebody", nonce, ())
    return beacon.encode(asked, secret.read(text).keys.beacon)
asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asker.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
asker.settimeout(float(sys.argv[3]))
asked = ask(sys.argv[1], b"f" * 16)
asker.sendto(asked, (sys.argv[2], 9701))
right = sys.argv[4]
try:
    print("answered", len(asker.recv(600)))
except TimeoutError:
    print("silence")
asker.sendto(asked, (sys.argv[2], 9701))
asker.sendto(ask(right, b"s" * 16), (sys.argv[2], 9701))
asker.settimeout(20)
print(beacon.decode(asker.recv(600), secret.read(right).keys.beacon).nonce.decode())
"""


@pytest.fixture(autouse=True)
def _secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISPY_SECRET", SECRET)
    monkeypatch.setenv("DISPY_SECRET_FILE", "")


class Lan:
    """Two or more hosts on one subnet, and what is started there."""

    def __init__(
        self, network: Network, folder: Path, run: Callable[[Marked], Marked], form: str
    ) -> None:
        self.network, self.folder, self._run, self._form = network, folder, run, form
        self.subnet = network.subnet("lan")
        self.hosts: list[Host] = []

    def host(self) -> Host:
        """Add a host."""
        host = self.network.host(f"h{len(self.hosts)}")
        self.hosts.append(host)
        host.join(self.subnet, *(self._form.format(len(self.hosts)).split()))
        return host

    def node(self, host: Host, *options: str, name: str = "node", port: int = 9701) -> NodeProcess:
        """Start a node with the default port."""
        more = ("--name", name, *options)
        node = NodeProcess(self.folder, *more, cpus=1, port=port, through=host.through)
        self._run(node)
        return node

    def broker(self, host: Host, *options: str) -> BrokerProcess:
        """Start a shared broker with the default ports."""
        more = ("--no-journal", "-d", *options)
        broker = BrokerProcess(self.folder, *more, port=9700, through=host.through)
        self._run(broker)
        return broker

    def client(self, host: Host, discover: Sequence[str] = (), **options: object) -> Marked:
        """Start a program that runs some jobs."""
        command = [*host.through, sys.executable, "-c", PROGRAM, json.dumps(options), *discover]
        client = Marked(command, self.folder, stdin=subprocess.PIPE)
        self._run(client)
        return client


@pytest.fixture
def lan(
    network: Network,
    tmp_path: Path,
    run: Callable[[Marked], Marked],
    request: pytest.FixtureRequest,
) -> Lan:
    """Make a subnet with IPv4, unless a test asks for something else."""
    return Lan(network, tmp_path, run, getattr(request, "param", "10.1.0.{}/24"))


def joined(broker: BrokerProcess, name: str = "node") -> Callable[[], bool]:
    return lambda: f"node '{name}' joined" in broker.log()


def has_said(client: Marked) -> list[str]:
    """Wait until a program has had its jobs done; return what it says."""
    until(lambda: "nodes\n" in client.output() or client.process.poll() is not None, "results")
    assert "nodes\n" in client.output(), client.log()
    return client.output().splitlines()


def end(client: Marked) -> None:
    assert client.process.stdin is not None
    client.process.stdin.close()
    assert client.wait(30.0) == 0, client.log()


# -- who finds whom --------------------------------------------------------------------------------


def test_a_node_finds_a_broker_that_is_there(lan: Lan) -> None:
    broker = lan.broker(lan.host())
    until(lambda: "nodes dial" in broker.log(), "the broker")
    lan.node(lan.host())
    until(joined(broker), "the node")


def test_a_broker_finds_nodes_that_are_there(lan: Lan) -> None:
    one, two = lan.host(), lan.host()
    lan.node(one, name="one")
    lan.node(two, name="two")
    broker = lan.broker(two)  # where one of the nodes is
    until(joined(broker, "one"), "the node at another host")
    until(joined(broker, "two"), "the node at the same host")


@pytest.mark.parametrize(
    "lan",
    [
        pytest.param("10.1.0.{}/24", id="broadcast"),
        pytest.param("10.1.{}.2/16", id="a larger network"),
        pytest.param("10.1.0.{}/31", id="a network without broadcasts"),
        pytest.param("fd00:1::{}/64", id="IPv6"),
        pytest.param("10.1.0.{0}/24 fd00:1::{0}/64", id="both"),
    ],
    indirect=True,
)
def test_a_program_finds_nodes(lan: Lan) -> None:
    lan.hosts.append(lan.network.host("none"))  # so that numbers begin with 2
    one, two = lan.host(), lan.host()
    lan.node(one)
    client = lan.client(two)
    assert has_said(client) == ["['node']", "1 nodes"]
    end(client)


def test_by_multicast_when_it_is_asked_to(lan: Lan) -> None:
    one, two = lan.host(), lan.host()
    for host in (one, two):  # no broadcast leaves a host
        host.run("ip", "rule", "add", "to", "10.1.0.255", "blackhole", "pref", "0")
    lan.node(one)
    client = lan.client(two, ipv4_udp_multicast=True, nodes="10.1.*")
    assert has_said(client) == ["['node']", "1 nodes"]
    end(client)


def test_patterns_say_which_of_them_are_used(lan: Lan) -> None:
    one, two, three = lan.host(), lan.host(), lan.host()
    lan.node(one, name="one")
    lan.node(two, name="two")
    client = lan.client(three, nodes=["10.1.0.2*"])
    assert has_said(client) == ["['two']", "1 nodes"]
    end(client)


def test_a_program_has_a_node_of_its_own_when_it_finds_none(lan: Lan) -> None:
    client = lan.client(lan.host())
    assert "-private-" in has_said(client)[0]
    end(client)


def test_nodes_are_found_when_a_program_asks_for_that(lan: Lan) -> None:
    one, two = lan.host(), lan.host()
    lan.node(one)
    client = lan.client(two, discover=["*"], nodes=["10.1.0.99", "10.1.0.1*"])
    assert has_said(client)[0] == "['node']"
    end(client)


def test_who_waits_gets_a_node_that_another_has_let_go(lan: Lan) -> None:
    one, two, three = lan.host(), lan.host(), lan.host()
    lan.node(one)
    first = lan.client(two, nodes="*")
    has_said(first)
    second = lan.client(three, nodes="10.*")
    until(lambda: "works for another" in second.log(), "the answer of a busy node")
    assert second.output() == ""
    end(first)
    assert has_said(second) == ["['node']", "1 nodes"]
    end(second)


# -- networks as they are --------------------------------------------------------------------------


def test_dead_addresses_do_no_harm(lan: Lan) -> None:
    """The address that is announced first is silent, another one is in an unknown network."""
    one, two = lan.host(), lan.host()
    one.join(lan.network.subnet("other"), "10.9.0.1/24")
    lan.node(one, "--ext-host", "10.1.0.77")
    client = lan.client(two)
    assert has_said(client) == ["['node']", "1 nodes"]
    end(client)


def test_a_broker_at_several_networks_finds_the_nodes_of_all(lan: Lan) -> None:
    middle, left, right = lan.host(), lan.host(), lan.network.host("right")
    other = lan.network.subnet("other")
    middle.join(other, "10.9.0.1/24")
    right.join(other, "10.9.0.2/24")
    lan.node(left, name="left")
    lan.node(right, name="right")
    broker = lan.broker(middle)
    until(joined(broker, "left"), "the node of one network")
    until(joined(broker, "right"), "the node of the other")


def test_a_node_that_can_not_be_dialled_dials(lan: Lan) -> None:
    one, two = lan.host(), lan.host()
    drop_tcp(one, "sport", 9701)
    lan.node(one)
    until(lambda: sockets(one) <= 2, "the end of the node's own questions")
    broker = lan.broker(two)
    until(joined(broker), "the node")


def test_a_node_that_can_not_dial_is_dialled(lan: Lan) -> None:
    one, two = lan.host(), lan.host()
    drop_tcp(one, "dport", 9700)
    broker = lan.broker(two)
    lan.node(one)
    until(joined(broker), "the node")


# -- strangers -------------------------------------------------------------------------------------


def seeks(host: Host, secret: str, timeout_s: float) -> list[str]:
    """Ask with a secret, then with the same datagram again, then with the right secret."""
    said = host.run(sys.executable, "-c", SEEKS, secret, "10.1.0.255", str(timeout_s), SECRET)
    return said.split("\n")[:2]


def test_another_secret_is_not_answered(lan: Lan) -> None:
    one, two = lan.host(), lan.host()
    lan.node(one)
    assert seeks(two, "another secret than this", 0.5) == ["silence", "s" * 16]


def test_a_recorded_question_is_not_answered_again(lan: Lan) -> None:
    one, two = lan.host(), lan.host()
    lan.node(one)
    said = seeks(two, SECRET, 20.0)
    assert said[0].startswith("answered ")
    assert said[1] == "s" * 16


def test_without_a_secret_nobody_is_asked_and_nobody_is_heard(
    lan: Lan, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = lan.host(), lan.host()
    lan.node(one)
    assert sockets(one)
    monkeypatch.delenv("DISPY_SECRET")
    lan.node(two)
    lan.node(two, "--insecure", "--host", two.address, port=9711)
    assert not sockets(two)


def drop_tcp(host: Host, what: str, port: int) -> None:
    """Have nothing leave a host that is from or to a TCP port, as a firewall does."""
    rule = ("ipproto", "tcp", what, str(port), "blackhole")
    host.run("ip", "rule", "add", "pref", "0", *rule)


def sockets(host: Host) -> int:
    """Return how many UDP sockets there are at a host."""
    return sum(len(host.run("cat", f"/proc/net/{kind}").splitlines()) - 1 for kind in KINDS)
