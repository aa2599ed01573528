"""The commands of operators against a real broker, and what they print."""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from dispy.broker.daemon import BrokerDaemon
from dispy.cli import main
from dispy.operator import Operator, Unreachable
from dispy.protocol import exitcodes
from dispy.protocol.events import Joined, Received
from dispy.protocol.exchange import Exchange
from dispy.protocol.guard import Guard
from dispy.protocol.identity import describe, new_guard, random_name
from dispy.protocol.messages import (
    STATUS,
    Body,
    BrokerReport,
    ClusterReport,
    Code,
    ComputationSpec,
    Holding,
    Identity,
    JobSpec,
    Kill,
    NodeReport,
    NodeSpec,
    NodeTrouble,
    OpenCluster,
    Prepare,
    Prepared,
    Results,
    Run,
    Submit,
    Vitals,
)
from dispy.protocol.transport import Bus
from dispy.tables import as_json, duration, shortened, show_nodes, show_status, size

STEP_S = 0.01
WAIT_S = 10.0
Kind = TypeVar("Kind")


class Peer:
    """A node or a client, message by message, in the thread of the broker."""

    def __init__(self, identity: Identity, guard: Guard, address: str) -> None:
        self.bus = Bus()
        self.exchange = Exchange(identity, self.bus, random_name, guard=guard)
        self.exchange.dial(address)
        self.broker = ""
        self.heard: list[Body] = []

    def say(self, *messages: Body) -> None:
        for message in messages:
            self.exchange.send(self.broker, message)

    def step(self, now: float) -> None:
        self.exchange.tick(now)
        self.exchange.flush(now)
        for arrival in self.bus.poll(0.0):
            for event in self.exchange.receive(arrival, now):
                if isinstance(event, Joined):
                    self.broker = event.peer
                elif isinstance(event, Received):
                    self.heard.append(event.message)
        self.exchange.flush(now)


class Site:
    """A broker in a thread of its own, with one node and one cluster of one client."""

    def __init__(self) -> None:
        bus = Bus()
        self.address = bus.listen("127.0.0.1:0")
        self.daemon = BrokerDaemon(bus, "1.2", "site")
        guard = new_guard()
        me = describe("node", "1.2", name="n1", cpus=2, door="a", token=guard.token)
        self.node = Peer(me, guard, self.address)
        guard = new_guard()
        self.client = Peer(describe("client", "1.2", token=guard.token), guard, self.address)
        self._asked: queue.SimpleQueue[tuple[Callable[[], object], Future[object]]] = (
            queue.SimpleQueue()
        )
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self.daemon.step(STEP_S)
            for peer in (self.node, self.client):
                peer.step(time.monotonic())
            while not self._asked.empty():
                call, future = self._asked.get()
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
        for peer in (self.node, self.client):
            peer.bus.close()
        self.daemon.close()

    def call(self, function: Callable[[], object]) -> object:
        """Call a function in the broker's thread."""
        future: Future[object] = Future()
        self._asked.put((function, future))
        return future.result(WAIT_S)

    def until(self, holds: Callable[[], object]) -> None:
        """Wait until something holds, as the broker's thread sees it."""
        end = time.monotonic() + WAIT_S
        while not self.call(holds):
            assert time.monotonic() < end, "it never came to that"

    def say(self, peer: Peer, *messages: Body) -> None:
        self.call(lambda: peer.say(*messages))

    def expect(self, peer: Peer, kind: type[Kind]) -> list[Kind]:
        """Wait for messages of a kind, and return all so far."""
        self.until(lambda: any(isinstance(each, kind) for each in peer.heard))
        return [each for each in peer.heard if isinstance(each, kind)]

    def close(self) -> None:
        self._stopping.set()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    try:
        site.until(lambda: site.node.broker and site.client.broker)
        site.say(site.node, Holding([], [], Vitals(75.0, 3 << 30, 5 << 40, 99.0)))
        layer = Code("3.11", JobSpec(0, 0, b"f"))
        spec = ComputationSpec("compute", [layer])
        site.say(site.client, OpenCluster(1, spec, [NodeSpec("*")], label="simulation"))
        [prepare] = site.expect(site.node, Prepare)
        site.say(site.node, Prepared(prepare.computation))
        site.say(site.client, Submit(1, [JobSpec(seq, 0, b"x") for seq in (1, 2, 3, 4, 5)]))
        site.expect(site.node, Run)
        yield site
    finally:
        site.close()


def dispy(site: Site, *arguments: str) -> Result:
    return CliRunner().invoke(main, [*arguments, "--broker", site.address])


def status(site: Site) -> Any:
    result = dispy(site, "status", "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


# -- against a broker -----------------------------------------------------------------------


def test_status_as_json(site: Site) -> None:
    report = status(site)
    assert list(report) == list(BrokerReport.__struct_fields__)
    [node], [cluster] = report["nodes"], report["clusters"]
    assert list(node) == list(NodeReport.__struct_fields__)
    assert list(cluster) == list(ClusterReport.__struct_fields__)
    assert (node["name"], node["cpus"], node["state"], node["running"]) == ("n1", 2, "up", 2)
    assert node["vitals"]["cpu"] == 75.0 and node["clusters"] == [cluster["id"]]
    assert (cluster["label"], cluster["waiting"], cluster["running"]) == ("simulation", 3, 2)
    assert report["clients"] == 1


def test_tables(site: Site) -> None:
    text = dispy(site, "status").output
    assert "simulation" in text and "1 node up with 2 CPUs" in text
    assert "2 running, 3 waiting" in text
    text = dispy(site, "nodes").output
    assert "n1" in text and "75%" in text and "3.0 GB" in text
    assert all(len(line) <= 100 for line in text.splitlines())


def test_a_node_is_drained_and_resumed(site: Site) -> None:
    result = dispy(site, "drain", "n1", "--reason", "new disk")
    assert result.exit_code == 0 and "is drained" in result.output
    assert "new disk" in dispy(site, "nodes").output
    [node] = status(site)["nodes"]
    assert (node["state"], node["reason"]) == ("drained", "new disk")
    trouble = site.expect(site.client, NodeTrouble)[-1]
    assert trouble.reason == "drained: new disk"
    assert dispy(site, "resume", "n1").exit_code == 0
    assert status(site)["nodes"][0]["state"] == "up"
    result = dispy(site, "resume", "n1", "--json")
    assert "neither drained nor set aside" in json.loads(result.output)["text"]


def test_jobs_are_explained_and_cancelled(site: Site) -> None:
    result = dispy(site, "explain", "simulation", "5")
    assert result.exit_code == 0 and "It waits" in result.output
    assert "n1" in dispy(site, "explain", "simulation").output
    result = dispy(site, "cancel", "simulation", "5")
    assert result.exit_code == 0 and "1 job of cluster" in result.output
    [results] = site.expect(site.client, Results)
    assert [each.seq for each in results.results] == [5]
    number = str(status(site)["clusters"][0]["id"])
    assert "4 jobs" in dispy(site, "cancel", number).output
    site.expect(site.node, Kill)


def test_what_is_not_there_is_refused(site: Site) -> None:
    for arguments in (["drain", "n2"], ["resume", "n2"]):
        result = dispy(site, *arguments)
        assert result.exit_code == 1 and "there is no node 'n2'; there is n1" in result.output
    for arguments in (["cancel", "no"], ["explain", "no", "1"]):
        result = dispy(site, *arguments)
        assert result.exit_code == 1 and "there is no cluster 'no'" in result.output
        assert "simulation" in result.output


def test_one_connection_for_many_questions(site: Site) -> None:
    with Operator(site.address) as operator:
        first = operator.status()
        operator.rest(2 * STEP_S)
        assert operator.status().nodes[0].name == first.nodes[0].name
    site.until(lambda: len(site.daemon.scheduler.clients) == 1)


# -- without one ----------------------------------------------------------------------------


def free_address() -> str:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.mark.parametrize("command", ["status", "nodes", "drain n", "resume n", "cancel c"])
def test_no_broker(command: str) -> None:
    address = free_address()
    result = CliRunner().invoke(main, [*command.split(), "--broker", address])
    assert result.exit_code == 3
    assert f"no broker answers at {address}: connection refused" in result.output


def test_something_else_listens_there() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = "{}:{}".format(*silent.getsockname())
        arguments = ["status", "--timeout", "0.3"]
        result = CliRunner().invoke(main, arguments, env={"DISPY_BROKER": address})
    assert result.exit_code == 3 and f"no broker answers at {address}" in result.output


def test_a_node_is_no_broker() -> None:
    bus = Bus()
    address = bus.listen("127.0.0.1:0")
    guard = new_guard()
    exchange = Exchange(describe("node", "1", token=guard.token), bus, random_name, guard=guard)
    done = threading.Event()

    def serve() -> None:
        while not done.is_set():
            for arrival in bus.poll(STEP_S):
                exchange.receive(arrival, time.monotonic())
            exchange.tick(time.monotonic())
            exchange.flush(time.monotonic())
        bus.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with Operator(address) as operator, pytest.raises(Unreachable, match="there is a node at"):
            operator.ask(STATUS)
    finally:
        done.set()
        thread.join()


@pytest.mark.parametrize(
    "text, code, says",
    [
        ("localhost:1:", 3, "can't be found"),
        ("localhost:x", 2, "is not 'host' or 'host:port'"),
        ("localhost:65536", 2, "is not 'host' or 'host:port'"),
        ("[::1]:9", 3, "no broker answers at [::1]:9"),
        ("10.0.0.1", 2, "is not on this machine"),
    ],
)
def test_where_no_broker_can_be(text: str, code: int, says: str) -> None:
    result = CliRunner().invoke(main, ["status", "--broker", text])
    assert (result.exit_code, says in result.output) == (code, True), result.output


# -- what is printed ------------------------------------------------------------------------


def node_report(number: int, name: str, **changes: Any) -> NodeReport:
    report = NodeReport(
        number, name, f"{name}:9701", 64, "up", "", 64, 128, 10**6, [1], 0.0, "Linux", "1"
    )
    return msgspec.structs.replace(report, **changes)


def cluster_report(number: int, label: str, user: str) -> ClusterReport:
    return ClusterReport(
        number, label, user, "open", True, 1.0, 10**6, 64, 10**7, 0, 64, 1e7, 0.5, 1234.5, 0.0
    )


def broker_report(**changes: Any) -> BrokerReport:
    nodes = [node_report(1, "n" * 60), node_report(2, "two", state="drained", reason="x " * 200)]
    clusters = [cluster_report(1 << 56, "label" * 20, "somebody" * 9)]
    report = BrokerReport("b", "1", "fair", 1.0, "", 0, "", 2, 9.5, nodes, clusters)
    return msgspec.structs.replace(report, **changes)


def test_tables_fit() -> None:
    report = broker_report(journal="/some/folder", journal_bytes=123456789, trouble="full " * 50)
    text = show_status(report, "localhost:9702", 100_000.0)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "NO NEW JOBS ARE ACCEPTED: full" in text
    assert "118 MB" in text and "1 d 3 h" in text and "two: drained: x" in text


def test_an_empty_broker() -> None:
    text = show_status(broker_report(nodes=[], clusters=[]), "h:1", 5.0)
    assert "no nodes" in text and "no clusters" in text and "no journal" in text


def test_names_can_not_move_the_cursor() -> None:
    text = show_nodes([node_report(1, "a\x1b[2Jb", reason="\x07bell")])
    assert "\x1b" not in text and "\x07" not in text and "a?[2Jb" in text


@given(st.integers(0, 1 << 60))
def test_sizes_are_short(count: int) -> None:
    assert len(size(count)) <= 7


@given(st.text(), st.integers(0, 30))
def test_what_is_shortened_fits(text: str, width: int) -> None:
    assert len(shortened(text, width)) <= max(width, 0)


@pytest.mark.parametrize(
    "seconds, text",
    [(-1.0, "0 s"), (59.9, "59 s"), (60, "1 min"), (3720, "1 h 02 min"), (90000, "1 d 1 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_objects_have_the_names_of_fields() -> None:
    value = as_json(node_report(1, "n", vitals=Vitals(1.0, 2, 3, 4.0)))
    assert value["vitals"] == {"cpu": 1.0, "memory": 2, "disk": 3, "swap": 4.0}
    assert json.loads(json.dumps(value)) == value


# -- what is documented ---------------------------------------------------------------------


def test_the_documentation_is_complete() -> None:
    text = (Path(__file__).parents[1] / "docs" / "operation.md").read_text()
    for kind in (BrokerReport, NodeReport, ClusterReport, Vitals):
        for field in kind.__struct_fields__:
            assert f"`{field}`" in text, field
    for name in ("status", "nodes", "drain", "resume", "cancel", "explain"):
        assert f"`dispy {name}" in text
    for code in [value for name, value in vars(exitcodes).items() if name.isupper()]:
        assert f"\n| {code} | " in text, code
