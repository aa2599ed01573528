"""A stage with a shared broker, several clusters, and people who ask about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec

from dispy.broker.core import Scheduler
from dispy.broker.effects import DropNode, Effect, KeepNode, Send
from dispy.broker.settings import Settings
from dispy.protocol.messages import (
    STATUS,
    BrokerReport,
    ComputationSpec,
    JobSpec,
    NodeReport,
    NodeSpec,
    OpenCluster,
    Operate,
    Prepare,
    Prepared,
    Report,
    Run,
    Submit,
)

from .stage import CLIENT, LAYER, Stage, identity

PEOPLE = "people"


class SharedStage(Stage):
    """A stage whose broker is shared; an operator is connected, too."""

    def __init__(self, durable: bool = False, nodes: tuple[NodeSpec, ...] = (NodeSpec("*"),)):
        self.all_effects: list[Effect] = []
        super().__init__(nodes=nodes)
        state = self.scheduler.state
        state.settings = replace(Settings(), shared=True, durable=durable)
        self.join_people(self.scheduler)
        self.asked = 0

    @staticmethod
    def join_people(scheduler: Scheduler) -> None:
        scheduler.joined(PEOPLE, identity("client", PEOPLE), [], "", 0.0)

    def flush(self) -> None:
        """Let the scheduler act, and remember all that it wants; no job goes to barred nodes."""
        self.scheduler.check()
        for effect in self.scheduler.flush(self.now):
            self.all_effects.append(effect)
            if isinstance(effect, Send):
                if isinstance(effect.message, Run):
                    assert not self.scheduler.nodes[effect.peer].barred
                self.sent.append((effect.peer, effect.message))
        self.scheduler.check()

    def tick(self, now: float) -> None:
        """Let time pass."""
        self.now = now
        self.scheduler.tick(now)
        self.flush()

    def open(self, number: int, name: str = "c", **fields: Any) -> int:
        """Open another cluster; return what the broker calls it."""
        spec = ComputationSpec(name, [LAYER], pulse_interval=1.0)
        self.tell(CLIENT, OpenCluster(number, spec, [NodeSpec("*")], **fields))
        return self.scheduler.clients[CLIENT].clusters[number].id

    def submit_to(self, number: int, *seqs: int) -> None:
        """Submit jobs to a cluster, as the client calls it."""
        self.tell(CLIENT, Submit(number, [JobSpec(seq, 0, b"x") for seq in seqs]))

    def prepare(self, **errors: str) -> None:
        """Have nodes answer what they were told to set up; those named fail."""
        for peer, prepare in self.take(Prepare):
            self.tell(peer, Prepared(prepare.computation, errors.get(peer, "")))

    # -- what people do ---------------------------------------------------------------------

    def operate(
        self, action: str, target: str = "", jobs: tuple[int, ...] = (), reason: str = ""
    ) -> Report:
        """Ask, and return the answer."""
        self.asked += 1
        self.tell(PEOPLE, Operate(self.asked, action, target, list(jobs), reason))
        [(peer, report)] = self.take(Report)
        assert peer == PEOPLE and report.request == self.asked
        return report

    def status(self) -> BrokerReport:
        """Ask how the broker is."""
        self.tell(PEOPLE, Operate(0, STATUS))
        parts = [report.status for _, report in self.take(Report) if report.status is not None]
        nodes = [node for part in parts for node in part.nodes]
        clusters = [cluster for part in parts for cluster in part.clusters]
        return msgspec.structs.replace(parts[0], nodes=nodes, clusters=clusters)

    def state_of(self, name: str) -> tuple[str, str]:
        """Return the state of a node, and the reason for it."""
        node = self.report_of(name)
        return node.state, node.reason

    def report_of(self, name: str) -> NodeReport:
        """Return what is reported of a node."""
        [node] = [node for node in self.status().nodes if node.name == name]
        return node

    def kept_nodes(self) -> dict[int, str]:
        """Return the nodes that a journal would have, and why these get no jobs."""
        kept: dict[int, str] = {}
        for effect in self.all_effects:
            if isinstance(effect, KeepNode):
                kept[effect.id] = effect.meta.drained or effect.meta.set_aside
            elif isinstance(effect, DropNode):
                del kept[effect.id]
        return kept
