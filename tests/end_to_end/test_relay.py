"""Clusters whose nodes are behind a relay: all that they can do, and all that can happen to it.

Nodes have no door that the tests use unless a relay dials them, so nothing goes past the relay.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Protocol

import pytest

import dispy
from dispy import DispyJob
from dispy.protocol import protection
from dispy.protocol.arrivals import Arrived, Route, Up
from dispy.protocol.identity import describe, new_guard
from dispy.protocol.messages import VERSION_MAJOR, VERSION_MINOR, Envelope, Hello
from dispy.protocol.secret import new as secret_text
from dispy.protocol.transport import Bus
from dispy.protocol.wire import Codec

from . import fake_nodes
from .behind_relays import OWN_PEERS, direct_only
from .conftest import NewCluster, NewProxy, NewSharedCluster, RunProgram, StartBroker, StartNode
from .processes import NOTHING_MORE, NodeProcess
from .records import note, noted
from .relays import RelayProcess
from .waiting import PATIENCE_S, all_ended, ended, finished, until

pytestmark = direct_only(OWN_PEERS)

MIB = 1 << 20
GROWTH_BYTES = 48 * MIB  # of a relay, however much wants to go through it
SECRET = {"DISPY_SECRET": secret_text()}  # others on this machine aren't found by it
HERE = ("-i", "127.0.0.1")


class StartRelay(Protocol):
    """Start a relay that ends with the test and has to leave nothing."""

    def __call__(
        self,
        *options: str,
        instead_of: RelayProcess | None = None,
        environment: Mapping[str, str] = NOTHING_MORE,
    ) -> RelayProcess:
        """Return it when it's ready; ``instead_of``: at the place of that one."""


@pytest.fixture
def start_relay(tmp_path: Path) -> Iterator[StartRelay]:
    """Start relays."""
    relays: list[RelayProcess] = []

    def start(
        *options: str,
        instead_of: RelayProcess | None = None,
        environment: Mapping[str, str] = NOTHING_MORE,
    ) -> RelayProcess:
        if instead_of is None:
            relays.append(RelayProcess(tmp_path, *HERE, *options, environment=environment))
        else:
            relays.append(instead_of.again())
        return relays[-1]

    yield start
    try:
        for relay in relays:
            if relay.process.poll() is None:
                relay.stop()
            assert "Traceback" not in relay.log()
    finally:
        for relay in relays:
            relay.clear_away()


@pytest.fixture
def relay(start_relay: StartRelay) -> RelayProcess:
    """A relay that waits for both sides."""
    return start_relay()


def square(record: str, number: int, seconds: float = 0.0, data: bytes = b"") -> object:
    """Note that it runs, take some time, return the right result."""
    import time

    note(record, number)
    time.sleep(seconds)
    return data or number * number


def nap(gate: str, number: int) -> int:
    import os
    import time

    open(f"{gate}.{number}", "w").close()
    while not os.path.exists(gate):
        time.sleep(0.01)
    return number


def on_host(seconds: float) -> str:
    import time

    time.sleep(seconds)
    return dispy_node_name  # type: ignore[name-defined,no-any-return]  # noqa: F821


def large(size: int) -> bytes:
    return bytes(size)


def length(data: bytes) -> int:
    return len(data)


def is_running(gate: Path, count: int) -> bool:
    return len(list(gate.parent.glob(gate.name + ".*"))) >= count


# -- all that a cluster can do -------------------------------------------------------------------


shift = 0


def setup(base: int) -> int:
    global shift
    shift = base
    return 0


def cleanup(_base: int) -> None:
    pass


def whole(name: str, extra: str) -> object:
    """Use what was set up, files of the cluster and of the job; say something meanwhile."""
    import time

    print("begin", flush=True)
    dispy_provisional_result(("half", shift))  # type: ignore[name-defined]  # noqa: F821
    with open("result.txt", "w") as out:
        out.write("written at the node")
    dispy_send_file("result.txt")  # type: ignore[name-defined]  # noqa: F821
    with open(name) as first, open(extra) as second:
        text = first.read() + second.read()
    time.sleep(0.05)
    print("end")
    return text, shift


def entry(address: str) -> dispy.NodeAllocate:
    """Return what says "host:port", or a pattern, with arguments of setup."""
    host, colon, port = address.rpartition(":")
    return dispy.NodeAllocate(host or port, port=int(port) if colon else None, setup_args=(7,))


def do_everything(cluster: dispy.JobCluster, extra: Path, seen: list[object]) -> None:
    """Submit a job that needs all, follow it, and cancel another."""
    job = cluster.submit("common.txt", extra.name, dispy_job_depends=[str(extra)])
    printed = "".join(text for _, text in job.follow())
    assert finished(job).result == ("common own", 7)
    assert printed == job.stdout == "begin\nend\n"
    assert ("half", 7) in seen


@pytest.fixture
def new_everything(tmp_path: Path, new_cluster: NewCluster) -> Callable[..., None]:
    """Return what does all that a cluster can do, with the entries of nodes= that it is given."""
    common, extra = tmp_path / "common.txt", tmp_path / "extra.txt"
    common.write_text("common ")
    extra.write_text("own")

    def run(*nodes: str) -> None:
        seen: list[object] = []

        def on_status(job: DispyJob) -> None:
            if job.status == DispyJob.ProvisionalResult:
                seen.append(job.result)

        entries = [entry(each) for each in nodes]
        cluster = new_cluster(
            whole,
            *entries,
            depends=[str(common)],
            setup=setup,
            cleanup=cleanup,
            job_status=on_status,
        )
        do_everything(cluster, extra, seen)
        assert (tmp_path / "result.txt").read_text() == "written at the node"
        assert cluster.close(timeout=20)

    return run


def test_a_node_and_a_client_dial_the_relay(
    relay: RelayProcess, start_node: StartNode, new_everything: Callable[..., None]
) -> None:
    start_node("--broker", relay.for_nodes)
    new_everything(relay.address, "*")


def test_the_relay_dials_the_node(
    start_relay: StartRelay, start_node: StartNode, new_everything: Callable[..., None]
) -> None:
    relay = start_relay("-n", start_node().address)
    new_everything(relay.address, "*")


def test_relays_in_a_row(
    start_relay: StartRelay, start_node: StartNode, new_everything: Callable[..., None]
) -> None:
    near = start_relay()
    far = start_relay("--broker", near.for_nodes)
    start_node("--broker", far.for_nodes)
    new_everything(near.address, "*")


def test_a_relay_dials_the_next_one(
    start_relay: StartRelay, start_node: StartNode, new_everything: Callable[..., None]
) -> None:
    far = start_relay("-n", start_node().address)
    near = start_relay("-n", far.address)
    new_everything(near.address, "*")


def test_jobs_are_cancelled(
    relay: RelayProcess, start_node: StartNode, new_cluster: NewCluster, gate: Path
) -> None:
    start_node("--broker", relay.for_nodes, cpus=1)
    cluster = new_cluster(nap, relay.address, "*")
    first, second = cluster.submit(str(gate), 0), cluster.submit(str(gate), 1)
    until(lambda: is_running(gate, 1), "a job that runs")
    assert cluster.cancel(second) == 0  # before there is a CPU for it
    assert cluster.cancel(first) == 0
    assert ended(first).status == DispyJob.Terminated
    assert ended(second).status == DispyJob.Cancelled


@pytest.mark.parametrize("who_dials", ["relay", "broker"])
def test_a_shared_broker(
    start_relay: StartRelay,
    start_node: StartNode,
    start_broker: StartBroker,
    new_shared_cluster: NewSharedCluster,
    record: Path,
    who_dials: str,
) -> None:
    if who_dials == "relay":
        broker = start_broker()
        relay = start_relay("--broker", broker.for_nodes)
    else:
        relay = start_relay()
        broker = start_broker("-n", relay.address)
    start_node("--broker", relay.for_nodes)
    cluster = new_shared_cluster(square, broker)
    jobs = [cluster.submit(str(record), number) for number in range(50)]
    assert [finished(job).result for job in jobs] == [number**2 for number in range(50)]


DOUBLE = """
import sys, time
import dispy

def double(n):
    return 2 * n

cluster = dispy.JobCluster(double, nodes=[sys.argv[1], "*"])
while len(cluster.status().nodes) < int(sys.argv[3]):
    time.sleep(0.01)
jobs = [cluster.submit(4) for _ in range(20)]
print(max(job() for job in jobs), flush=True)
time.sleep(float(sys.argv[2]))
cluster.close()
"""


def test_a_relay_works_for_one_broker_at_a_time(
    relay: RelayProcess, start_node: StartNode, start_program: RunProgram, new_cluster: NewCluster
) -> None:
    start_node("--broker", relay.for_nodes)
    cluster = new_cluster(large, relay.address, "*")
    finished(cluster.submit(1))
    program = start_program(DOUBLE, relay.address, "0", "1")
    until(lambda: "this relay works for" in program.log(), "a refusal that says why")
    assert cluster.close()
    until(lambda: program.output() == "8\n", "its turn")
    assert program.wait(10) == 0


def test_a_relay_and_its_nodes_are_free_soon_after_their_program_was_killed(
    relay: RelayProcess, start_node: StartNode, start_program: RunProgram
) -> None:
    for _ in range(2):
        start_node("--broker", relay.for_nodes)
    first = start_program(DOUBLE, relay.address, "60", "2")
    until(lambda: first.output() == "8\n", "all jobs done, and the cluster not closed")
    first.kill()
    until(lambda: "can't be reached" in relay.log(), "a relay that has noticed")
    second = start_program(DOUBLE, relay.address, "0", "2")
    until(lambda: "s more for" in second.log(), "how long it waits for whom")
    assert second.wait(PATIENCE_S) == 0, second.log()
    assert second.output() == "8\n"


# -- misfortunes ---------------------------------------------------------------------------------


def test_a_relay_that_is_killed_and_started_again_loses_and_repeats_nothing(
    relay: RelayProcess,
    start_relay: StartRelay,
    start_node: StartNode,
    new_cluster: NewCluster,
    record: Path,
) -> None:
    for _ in range(2):
        start_node("--broker", relay.for_nodes)
    start = relay
    cluster = new_cluster(square, relay.address, "*")
    finished(cluster.submit(str(record), 0))
    jobs = [cluster.submit(str(record), number, 0.01) for number in range(1, 600)]
    for part in range(1, 3):
        until(jobs[part * 200].finish.is_set, "some jobs that have ended")
        start.kill()
        start = start_relay(instead_of=start)
    for number, job in enumerate(all_ended(jobs, 60), 1):
        assert job.status == DispyJob.Finished, job.exception
        assert job.result == number * number
    assert set(noted(record).values()) == {1}


def test_a_relay_that_dials_on_both_sides_is_killed(
    start_relay: StartRelay,
    start_node: StartNode,
    start_broker: StartBroker,
    new_shared_cluster: NewSharedCluster,
    record: Path,
) -> None:
    broker = start_broker()
    relay = start_relay("--broker", broker.for_nodes, "-n", start_node().address)
    cluster = new_shared_cluster(square, broker)
    jobs = [cluster.submit(str(record), number, 0.01) for number in range(400)]
    until(jobs[100].finish.is_set, "some jobs that have ended")
    relay.kill()
    start_relay(instead_of=relay)
    for number, job in enumerate(all_ended(jobs, 60)):
        assert job.status == DispyJob.Finished, job.exception
        assert job.result == number * number
    assert set(noted(record).values()) == {1}


def test_the_broker_is_killed_and_started_again(
    start_relay: StartRelay,
    start_node: StartNode,
    start_broker: StartBroker,
    new_shared_cluster: NewSharedCluster,
    record: Path,
) -> None:
    broker = start_broker()
    relay = start_relay("--broker", broker.for_nodes)
    start_node("--broker", relay.for_nodes)
    cluster = new_shared_cluster(square, broker)
    jobs = [cluster.submit(str(record), number, 0.01) for number in range(400)]
    until(jobs[100].finish.is_set, "some jobs that have ended")
    broker.kill()
    start_broker(instead_of=broker)
    for number, job in enumerate(all_ended(jobs, 60)):
        assert job.status == DispyJob.Finished, job.exception
        assert job.result == number * number
    assert set(noted(record).values()) == {1}


def test_a_node_that_is_killed_is_noticed_as_fast_as_a_direct_one(
    start_relay: StartRelay, start_node: StartNode, new_cluster: NewCluster, gate: Path
) -> None:
    took = {}
    for how in ("direct", "relayed"):
        node = start_node(cpus=1)
        address = node.address
        if how == "relayed":
            address = start_relay("-n", node.address).address
        place = gate.with_name(f"{gate.name}-{how}")
        cluster = new_cluster(nap, address, *(["*"] if how == "relayed" else []))
        job = cluster.submit(str(place), 0)
        until(partial(is_running, place, 1), "a job that runs")
        node.kill()
        begin = time.monotonic()
        assert ended(job, 20).status == DispyJob.Abandoned
        took[how] = time.monotonic() - begin
        place.touch()
        assert cluster.close(timeout=0, terminate=True)
    assert took["relayed"] < took["direct"] + 1.0, took


def test_other_nodes_go_on_while_one_is_stopped(
    relay: RelayProcess, start_node: StartNode, new_cluster: NewCluster
) -> None:
    nodes = [start_node("--broker", relay.for_nodes, "--name", name) for name in ("one", "two")]
    cluster = new_cluster(on_host, relay.address, "*")
    jobs = [cluster.submit(0.1) for _ in range(20)]
    assert {finished(job).result for job in jobs} == {"one", "two"}
    nodes[0].process.send_signal(signal.SIGSTOP)
    try:
        begin = time.monotonic()
        jobs = [cluster.submit(0.01) for _ in range(100)]
        until(lambda: sum(job.finish.is_set() for job in jobs) >= 90, "most of the jobs")
        assert time.monotonic() - begin < 15
    finally:
        nodes[0].process.send_signal(signal.SIGCONT)
    assert {finished(job).result for job in jobs} >= {"two"}


def test_memory_is_bounded_when_a_node_takes_nothing_in(
    relay: RelayProcess, start_node: StartNode, new_cluster: NewCluster
) -> None:
    node = start_node("--broker", relay.for_nodes, cpus=2)
    cluster = new_cluster(length, relay.address, "*", max_tasks_per_child=None)
    finished(cluster.submit(b"x"))
    before, most = relay.memory(), 0
    node.process.send_signal(signal.SIGSTOP)
    try:
        jobs = [cluster.submit(bytes([number]) * MIB) for number in range(100)]
        end = time.monotonic() + 3.0
        while time.monotonic() < end:
            most = max(most, relay.memory())
            time.sleep(0.05)
    finally:
        node.process.send_signal(signal.SIGCONT)
    assert {finished(job).result for job in jobs} == {MIB}
    assert most - before < GROWTH_BYTES


def test_memory_is_bounded_when_the_broker_takes_nothing_in(
    start_relay: StartRelay,
    start_node: StartNode,
    start_broker: StartBroker,
    new_shared_cluster: NewSharedCluster,
) -> None:
    broker = start_broker()
    relay = start_relay("--broker", broker.for_nodes)
    for _ in range(2):
        start_node("--broker", relay.for_nodes)
    cluster = new_shared_cluster(large, broker, max_tasks_per_child=None)
    finished(cluster.submit(1))
    before, most = relay.memory(), 0
    jobs = [cluster.submit(MIB) for _ in range(300)]
    until(jobs[10].finish.is_set, "some results")
    broker.process.send_signal(signal.SIGSTOP)
    try:
        end = time.monotonic() + 3.0
        while time.monotonic() < end:
            most = max(most, relay.memory())
            time.sleep(0.05)
    finally:
        broker.process.send_signal(signal.SIGCONT)
    assert {len(finished(job).result) for job in jobs} == {MIB}
    assert most - before < GROWTH_BYTES


def test_memory_is_bounded_when_a_node_keeps_no_bounds(
    start_relay: StartRelay, start_broker: StartBroker
) -> None:
    broker = start_broker()
    relay = start_relay("--broker", broker.for_nodes)
    until(lambda: "working for" in relay.log(), "the trunk")
    with rude_node(relay.for_nodes) as (bus, route):
        before, most = relay.memory(), 0
        broker.process.send_signal(signal.SIGSTOP)
        try:
            header, _ = Codec().encode(Envelope(0, 1, 0, []))
            payload = bytes(MIB)
            for _ in range(200):
                assert bus.send(route, [header, payload])
            end = time.monotonic() + 3.0
            while time.monotonic() < end:
                bus.poll(0.05)
                most = max(most, relay.memory())
        finally:
            broker.process.send_signal(signal.SIGCONT)
    assert 4 * MIB < most - before < GROWTH_BYTES


@contextmanager
def rude_node(address: str) -> Iterator[tuple[Bus, Route]]:
    """Have a connection to a relay on which a node has been welcomed by the broker."""
    keys = protection.find().keys
    bus, guard = Bus(keys), new_guard(keys)
    me = describe("node", "0", name="rude", cpus=1, token=guard.token)
    route = bus.dial(address)
    try:
        until(lambda: any(isinstance(each, Up) for each in bus.poll(0.1)), "the connection")
        token, proof = guard.present(me.role, me.instance, bus.public_key)
        hello = Hello(VERSION_MAJOR, VERSION_MINOR, me, token=token, proof=proof)
        bus.send(route, [Codec().encode(hello)[0]])
        until(lambda: any(isinstance(each, Arrived) for each in bus.poll(0.1)), "an answer")
        yield bus, route
    finally:
        bus.close()


@pytest.mark.timeout(180)
def test_many_nodes_behind_one_relay(
    start_relay: StartRelay,
    start_node: StartNode,
    start_broker: StartBroker,
    new_shared_cluster: NewSharedCluster,
) -> None:
    count = 200
    broker = start_broker()
    relay = start_relay("--broker", broker.for_nodes)
    command = [sys.executable, fake_nodes.__file__, relay.for_nodes, str(count)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as fakes:
        try:
            assert fakes.stdout is not None
            assert fakes.stdout.readline().startswith("registered")
            until(lambda: len(broker.status().nodes) == count, "all nodes")
            until(lambda: {node.state for node in broker.status().nodes} == {"up"}, "all up")
            begin = time.monotonic()
            while time.monotonic() < begin + 5.0:  # beats of all get through in time
                assert {node.state for node in broker.status().nodes} == {"up"}
                time.sleep(0.2)
        finally:
            fakes.kill()
    assert relay.memory() < 200 * MIB


def test_a_file_crosses_the_trunk_once_for_all_nodes(
    new_proxy: NewProxy,
    relay: RelayProcess,
    start_node: StartNode,
    new_cluster: NewCluster,
    tmp_path: Path,
) -> None:
    size = 8 * MIB
    path = tmp_path / "content"
    path.write_bytes(os.urandom(size))
    proxy = new_proxy(relay.address)
    for number in range(4):
        start_node("--broker", relay.for_nodes, "--name", f"n{number}", cpus=1)
    cluster = new_cluster(on_host, proxy.address, "*", depends=[str(path)])
    jobs = [cluster.submit(0.2) for _ in range(20)]
    until(lambda: len(cluster.status().nodes) == 4, "four nodes")
    names = {finished(job).result for job in [*jobs, *(cluster.submit(0.2) for _ in range(20))]}
    assert names == {"n0", "n1", "n2", "n3"}
    assert size < proxy.carried < 2 * size


SOURCE = """
import sys

import dispy


def compute(n, gate):
    import os
    import time
    open(f"{gate}.{n}", "w").close()
    while not os.path.exists(gate):
        time.sleep(0.01)
    return n * n


relay, gate = sys.argv[1:]
cluster = dispy.JobCluster(compute, nodes=[relay, "*"], recover_file="recover")
for n in range(2):
    cluster.submit(n, gate).id = n
cluster.close()
"""


def test_jobs_of_a_killed_program_are_recovered(
    relay: RelayProcess, start_node: StartNode, start_program: RunProgram, gate: Path
) -> None:
    start_node("--broker", relay.for_nodes)
    program = start_program(SOURCE, relay.address, str(gate))
    until(lambda: is_running(gate, 2), "two jobs that run")
    program.kill()
    gate.touch()
    jobs = dispy.recover_jobs(program.folder / "recover")
    assert sorted(finished(job).result for job in jobs) == [0, 1]


def test_ctrl_c_stops_a_relay_and_both_sides_are_told(
    relay: RelayProcess, start_node: StartNode, new_cluster: NewCluster
) -> None:
    node: NodeProcess = start_node("--broker", relay.for_nodes)
    cluster = new_cluster(large, relay.address, "*")
    finished(cluster.submit(1))
    begin = time.monotonic()
    relay.stop(signal.SIGINT)
    until(lambda: "can't be reached" in node.log(), "the node that knows")
    assert time.monotonic() - begin < 3.0


# -- with a secret -------------------------------------------------------------------------------


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, str]:
    """A secret of this process and of all that it starts."""
    for name, text in SECRET.items():
        monkeypatch.setenv(name, text)
    return SECRET


def test_all_is_the_same_with_a_secret(
    secret: Mapping[str, str],
    start_relay: StartRelay,
    start_node: StartNode,
    new_cluster: NewCluster,
    record: Path,
) -> None:
    near = start_relay()
    start_relay("--broker", near.for_nodes, "-n", start_node(*HERE).address)
    start_node(*HERE, "--broker", near.for_nodes)
    cluster = new_cluster(square, near.address, "*", host="127.0.0.1")
    jobs = [cluster.submit(str(record), number, 0.02) for number in range(100)]
    assert [finished(job).result for job in jobs] == [number**2 for number in range(100)]
    until(lambda: len(cluster.status().nodes) == 2, "nodes behind both")


def test_strangers_are_refused_by_the_relay(
    secret: Mapping[str, str],
    relay: RelayProcess,
    start_node: StartNode,
) -> None:
    environment = {"DISPY_SECRET": "quite another secret than theirs"}
    node = start_node(*HERE, "--broker", relay.for_nodes, environment=environment)
    until(lambda: "secrets differ" in node.log(), "a refusal that says why")
    assert "joined" not in relay.log()


def test_old_options(start_relay: StartRelay, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dispy.relay.oldcommand", "--ip_addr", "127.0.0.1"]
    options = ["--dispy_port", "0", "--relay_port", "9701", "--ipv4_udp_multicast"]
    with subprocess.Popen([*command, *options], stderr=subprocess.PIPE, text=True) as old:
        assert old.stderr is not None
        text = ""
        while "nodes dial" not in text:
            text = old.stderr.readline()
            assert text, "it ended"
        old.send_signal(signal.SIGTERM)
        assert old.wait(10) == 0
