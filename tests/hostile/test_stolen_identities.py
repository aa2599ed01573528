"""Whoever has a secret, and says that he is somebody else, or may what he may not (B16).

And: no daemon ever unpickles, in a run of all three with a job that is as large as they get.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest

import dispy
from dispy.operator import Operator
from dispy.protocol import messages as m
from dispy.protocol import secret as secrets
from dispy.protocol.exchange import Exchange
from dispy.protocol.guard import Guard, instance_of
from dispy.protocol.identity import new_guard, new_token
from dispy.protocol.keys import Keys
from dispy.protocol.messages import Hello
from dispy.protocol.wire import Codec

from . import daemons
from .daemons import Daemon
from .peer import Peer
from .sitecustomize import EXIT

PATIENCE_S = 30.0
LARGE = 3 << 20  # bytes of an argument and of a result
COMPUTATION = m.ComputationSpec("c", [m.Code("3", m.JobSpec(0, 0, b""))])


class Site(NamedTuple):
    """A broker with two secrets, a relay, and a node behind it; none of them may unpickle."""

    broker: Daemon
    relay: Daemon
    node: Daemon
    users: Path
    for_users: Keys
    for_nodes: Keys

    @property
    def clients(self) -> str:
        return daemons.clients_door(self.broker)

    def node_report(self) -> m.NodeReport | None:
        with Operator(self.clients, keys=self.for_users) as operator:
            return next(iter(operator.status().nodes), None)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("identities")
    texts = {name: secrets.new() for name in ("users", "nodes")}
    for name, text in texts.items():
        (folder / name).touch(0o600)
        (folder / name).write_text(text)
    here = str(Path(__file__).parent)  # with a sitecustomize.py
    environment = {"PYTHONPATH": here}
    node_secret = str(folder / "nodes")
    broker = daemons.broker(
        folder / "broker", "--cluster-secret-file", str(folder / "users"),
        "--node-secret-file", node_secret, environment=environment,
    )  # fmt: skip
    up = ("--broker", broker.address, "--secret-file", node_secret)
    relay = daemons.relay(folder / "relay", *up, environment=environment)
    down = ("--broker", relay.address, "--secret-file", node_secret)
    node = daemons.node(folder / "node", *down, environment=environment)
    keys = [secrets.read(texts[name]).keys for name in ("users", "nodes")]
    site = Site(broker, relay, node, folder / "users", *keys)
    deadline = time.monotonic() + PATIENCE_S
    while site.node_report() is None:
        assert time.monotonic() < deadline, broker.log() + relay.log() + node.log()
    yield site
    assert site.node_report() is not None
    for daemon in (node, relay, broker):
        daemon.stop()
        assert "unpickled" not in daemon.log() and "Traceback" not in daemon.log(), daemon.log()


def double(data: bytes) -> bytes:
    return data * 2


def test_no_daemon_unpickles(site: Site) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DISPY_SECRET_FILE", str(site.users))
        cluster = dispy.SharedJobCluster(double, scheduler_node=site.clients, host="127.0.0.1")
    job = cluster.submit(os.urandom(LARGE))
    assert job is not None and job.finish.wait(PATIENCE_S), site.broker.log()
    assert job.status == dispy.DispyJob.Finished and len(job.result) == 2 * LARGE, job.exception
    cluster.close()


@pytest.mark.parametrize(("name", "code"), [("dispy.node.cli", EXIT), ("a.program", 0)])
def test_the_trap_works(name: str, code: int) -> None:
    """A daemon that does unpickle would have ended; others aren't concerned."""
    unpickles = "import pickle; pickle.loads(pickle.dumps(1))"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    ended = subprocess.run([sys.executable, "-c", unpickles, name], env=environment, check=False)
    assert ended.returncode == code


# -- roles ----------------------------------------------------------------------------------


def test_the_secret_of_nodes_makes_nobody_a_client(site: Site) -> None:
    with Peer("client", site.clients, site.for_nodes) as peer:
        assert "the secrets differ" in peer.refusal()
    with Peer("client", site.broker.address, site.for_nodes) as peer:
        assert "not for a client" in peer.refusal()
    assert "not for a client" in site.broker.log()


@pytest.mark.parametrize("role", ["node", "relay", "broker"])
def test_the_secret_of_users_makes_nobody_anything_else(site: Site, role: str) -> None:
    with Peer(role, site.broker.address, site.for_users) as peer:
        assert "the secrets differ" in peer.refusal()
    with Peer(role, site.clients, site.for_users, cpus=1) as peer:
        assert f"not for a {role}" in peer.refusal()


@pytest.mark.parametrize(
    "message",
    [
        m.OpenCluster(1, COMPUTATION, [m.NodeSpec("*")]),
        m.Submit(1, [m.JobSpec(1, 0, b"x")]),
        m.CancelJobs(1, [1]),
        m.Operate(1, m.STATUS),
        m.Attach(1, "1"),
    ],
    ids=lambda message: type(message).__name__,
)
def test_a_node_can_ask_for_nothing_that_clients_can(site: Site, message: m.Body) -> None:
    with Peer("node", site.broker.address, site.for_nodes, cpus=1) as peer:
        peer.join()
        peer.say(message)
        peer.until(peer.has_left, "the end of the session")


# -- instances ------------------------------------------------------------------------------


def as_another(instance: str, exchange: Exchange) -> None:
    another = msgspec.structs.replace(exchange.identity, instance=instance)
    exchange._handshake.identity = another


def test_nobody_is_believed_to_be_another(site: Site) -> None:
    victim = new_guard(site.for_nodes)
    with Peer("node", site.broker.address, site.for_nodes, victim, cpus=1) as honest:
        honest.join()
        instance = instance_of(victim.token)

        def steal(exchange: Exchange) -> None:
            as_another(instance, exchange)

        for token in (new_token(), b""):
            guard = Guard(token, site.for_nodes)
            with Peer("node", site.broker.address, site.for_nodes, guard, 1, steal) as thief:
                assert "another process" in thief.refusal()
        honest.pump()
        assert not honest.has_left()
    assert "another process" in site.broker.log()


class Recorder(Guard):
    """Says what somebody else has said on another connection."""

    said: tuple[bytes, bytes] = (b"", b"")

    def present(self, role: str, instance: str, key: bytes) -> tuple[bytes, bytes]:
        return self.said


def test_a_hello_that_was_recorded_is_worth_nothing(site: Site) -> None:
    victim = new_guard(site.for_nodes)
    thief = Recorder(victim.token, site.for_nodes)
    with Peer("node", site.broker.address, site.for_nodes, victim, cpus=1) as honest:
        honest.join()
        me = honest.exchange.identity
        thief.said = victim.present(me.role, me.instance, honest.bus.public_key)
        with Peer("node", site.broker.address, site.for_nodes, thief, cpus=1) as peer:
            assert "doesn't prove" in peer.refusal()
        assert not honest.has_left()


# -- clusters of others ---------------------------------------------------------------------


def test_a_cluster_whose_program_runs_is_only_taken_by_force(site: Site) -> None:
    with Peer("client", site.clients, site.for_users) as owner:
        owner.join()
        owner.say(m.OpenCluster(1, COMPUTATION, [m.NodeSpec("nowhere")], label="mine"))
        opened = owner.hear(m.ClusterOpened)
        with Peer("client", site.clients, site.for_users) as other:
            other.join()
            other.say(m.CancelJobs(1, [1]))  # this one has none with that number
            other.say(m.Attach(7, "mine"))
            assert "its program is running" in other.hear(m.ClusterLost).reason
            other.say(m.Attach(7, "mine", force=True))
            assert other.hear(m.Attached).computation == opened.computation
            other.say(m.CloseCluster(7))
            other.hear(m.ClusterClosed)
        assert "taken over" in owner.hear(m.ClusterLost).reason


# -- relays that lie ------------------------------------------------------------------------


def hello(role: str, token: bytes, instance: str = "") -> bytes:
    who = m.Identity(role, instance or instance_of(token), "x", "0", "3.11", "Linux", 1)
    return Codec().encode(Hello(m.VERSION_MAJOR, m.VERSION_MINOR, who, token=token))[0]


def relayed(child: int, event: int = m.CARRIED, text: str = "") -> bytes:
    return Codec().encode(m.Relayed(child, event, text))[0]


@pytest.mark.parametrize("role", ["node", "relay"])
def test_what_a_lying_relay_says_of_others(site: Site, role: str) -> None:
    """It can't bring clients or take instances over; and who is no relay brings nobody."""
    token = new_token()
    with Peer(role, site.broker.address, site.for_nodes, cpus=1) as peer:
        peer.join()
        route = peer.exchange.links[peer.peer].route
        assert route is not None
        lies = [
            [relayed(1), hello("client", token)],
            [relayed(2), hello("broker", token)],
            [relayed(3), hello("node", b"", "n" * 32)],
            [relayed(4), hello("relay", token)],
            [relayed(4)] * 50 + [hello("node", new_token())],
            [relayed(9, m.INTRODUCED, "\x1b[2J:0")],
            [relayed(-5, m.LOST, "\n")],
            [relayed(6)],
            [relayed(1 << 63, 77)],
        ]
        for frames in lies:
            peer.bus.send(route, list(frames))
            peer.pump(0)
        peer.pump()
        with Operator(site.clients, keys=site.for_users) as operator:
            status = operator.status()
        assert not status.clients and not status.clusters
        assert all(node.name != "x" for node in status.nodes)
        if role == "node":
            assert peer.has_left()
