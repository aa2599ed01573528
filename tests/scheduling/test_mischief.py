"""What peers that say anything in any order have broken once: see `tests/hostile`."""

from __future__ import annotations

import time

import pytest

from dispy.broker.matching import addresses
from dispy.broker.nodes import LEASE_PULSES, PULSE_MIN_S
from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    CloseCluster,
    ComputationSpec,
    Holding,
    JobOptions,
    JobSpec,
    NodeSpec,
    OpenCluster,
    Submit,
)

from .durablestage import DurableStage
from .stage import CLIENT, LAYER, Stage

PATIENCE_S = 5.0
LONG_S = 1000.0  # than any lease


@pytest.mark.parametrize("new_stage", [Stage, DurableStage])
def test_an_absurd_number_among_jobs_leaves_none_half_taken(new_stage: type[Stage]) -> None:
    stage = new_stage()
    pinned = JobSpec(1, 0, b"x", [], JobOptions(node=7))
    with pytest.raises(ProtocolError):
        stage.tell(CLIENT, Submit(1, [pinned, JobSpec(1 << 60, 0, b"x")]))
    stage.scheduler.left(CLIENT, "it broke the protocol")
    stage.flush()
    assert not stage.scheduler.clusters


def test_a_node_let_go_by_what_it_holds_gets_nothing_more() -> None:
    """The cluster that asked for it ends at that moment, and another would take it."""
    stage = Stage(nodes=(NodeSpec("127.0.0.1", 9701),))
    stage.node("n")
    stage.tell(CLIENT, CloseCluster(1))
    stage.join("n")  # a new session: it isn't known yet what it holds
    stage.tell(CLIENT, OpenCluster(2, ComputationSpec("d", [LAYER]), [NodeSpec("*")]))
    stage.tell("n", Holding([], []))
    assert stage.dismissed == ["n"] and not stage.scheduler.nodes
    assert not any(cluster.allocations for cluster in stage.scheduler.clusters.values())


def test_a_node_let_go_with_another_one_that_is_lost() -> None:
    """Both leases end at once, and the first was the last of its cluster."""
    stage = Stage(nodes=(NodeSpec("127.0.0.1", 9701), NodeSpec("127.0.0.1", 9702, -5)))
    stage.node("n")
    stage.node("mm", ready=False)
    stage.tell(CLIENT, CloseCluster(1))
    stage.scheduler.away("n", "silence", False, stage.now)
    stage.scheduler.away("mm", "silence", False, stage.now)
    stage.now += LONG_S
    stage.scheduler.tick(stage.now)
    stage.flush()
    assert not stage.scheduler.nodes and not stage.scheduler.clusters


@pytest.mark.parametrize("host", ["localhost", "x", "\0", "", "127.0.0.1;x", "1.2.3.4.5", "é" * 99])
def test_no_name_is_looked_up_for_a_client(host: str) -> None:
    """That would hold all others up."""
    assert addresses([NodeSpec(host, 9701), NodeSpec("10.0.0.1", 99999)]) == set()


def test_addresses_of_both_kinds_are_dialled() -> None:
    specs = [NodeSpec("10.0.0.1", 9701), NodeSpec("fe80::1", 1), NodeSpec("::1", 65535)]
    assert addresses(specs) == {"10.0.0.1:9701", "[fe80::1]:1", "[::1]:65535"}


@pytest.mark.parametrize("pattern", ["[a-" * 20_000, "*?" * 2000 + "b", "?*" * 127 + "b"])
def test_no_pattern_takes_long(pattern: str) -> None:
    began = time.monotonic()
    stage = Stage(nodes=(NodeSpec(pattern),))
    stage.join("a" * 250)
    stage.tell("a" * 250, Holding([], []))
    assert time.monotonic() - began < PATIENCE_S
    assert not stage.scheduler.clusters[stage.number].allocations


@pytest.mark.parametrize("pulse_s", [1e-300, 1e-9, 0.05])
def test_no_cluster_has_a_node_given_up_at_the_first_silence(pulse_s: float) -> None:
    """Programs can't ask for such pulses, but others who speak the protocol can."""
    stage = Stage()
    spec = ComputationSpec("d", [LAYER], pulse_interval=pulse_s)
    stage.tell(CLIENT, OpenCluster(2, spec, [NodeSpec("*")]))
    stage.node("n")
    stage.scheduler.away("n", "silence", False, stage.now)
    stage.now += LEASE_PULSES * PULSE_MIN_S - 0.01
    stage.scheduler.tick(stage.now)
    assert "n" in stage.scheduler.nodes
    stage.now += 0.02
    stage.scheduler.tick(stage.now)
    assert "n" not in stage.scheduler.nodes
