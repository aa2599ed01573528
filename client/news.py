"""What the broker says of jobs that run, and of nodes: functions over the core's state. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    FILE,
    OUTPUT,
    PROVISIONAL,
    Answer,
    Heard,
    JobRecord,
    JobsRequeued,
    JobsRunning,
    NeedBlobs,
    NodeGone,
    NodeOffer,
    NodeReady,
    NodeTrouble,
    NodeVitals,
    Records,
)

from .effects import (
    Answered,
    Begun,
    NodeAlive,
    NodeDown,
    NodeUp,
    Offered,
    Requeued,
    Silent,
    Told,
    Wanted,
    Warned,
)
from .reasons import BROKER, unsaid
from .reports import Report
from .state import Cluster, State

TROUBLES_MAX = 100  # of one cluster that are remembered, so that they are told only once
KINDS = {PROVISIONAL, FILE, OUTPUT}


def _on_running(state: State, number: int, cluster: Cluster, message: JobsRunning) -> None:
    unfinished = cluster.unfinished
    begun = [(unfinished[seq], start) for seq, start in message.jobs if seq in unfinished]
    if begun:
        state.effects.append(Begun(number, message.node, begun))


def _on_requeued(state: State, number: int, cluster: Cluster, message: JobsRequeued) -> None:
    seqs = [seq for seq in message.jobs if seq in cluster.unfinished]
    told = [seq for seq in seqs if seq in cluster.reports]
    if told:
        state.effects.append(Silent(number, told))
    if seqs:
        state.effects.append(Requeued(number, [cluster.unfinished[seq] for seq in seqs]))


def _on_records(state: State, number: int, cluster: Cluster, message: Records) -> None:
    if not {record.kind for record in message.records} <= KINDS:
        raise ProtocolError("a job says something of a kind that there isn't")
    fresh = []
    for record in message.records:
        job = cluster.unfinished.get(record.seq)
        if job is not None and _arrives(state, number, cluster, record):
            fresh.append((job, record))
    if fresh:
        state.effects.append(Told(number, message.node, fresh))


def _on_need(state: State, number: int, cluster: Cluster, message: NeedBlobs) -> None:
    state.effects.append(Wanted(number, message.node, message.ranges))


def _on_offer(state: State, number: int, cluster: Cluster, message: NodeOffer) -> None:
    if not cluster.closing:
        state.effects.append(Offered(number, message.node, message.vitals))


def _on_vitals(state: State, number: int, cluster: Cluster, message: NodeVitals) -> None:
    state.effects.append(NodeAlive(number, message.node, message.vitals))


def _on_answer(state: State, number: int, cluster: Cluster, message: Answer) -> None:
    if message.request not in cluster.asked:
        return  # it was given up
    known = cluster.asked.pop(message.request)
    text = message.text
    if known is not None:
        text = f"{known} {text}{unsaid(cluster, text)}".strip()
    state.effects.append(Answered(number, message.request, message.code, text))


def _on_node_ready(state: State, number: int, cluster: Cluster, message: NodeReady) -> None:
    cluster.nodes[message.node.id] = message.node
    cluster.leaving.discard(message.node.id)
    cluster.met = True
    cluster.patient_until = None
    cluster.troubles.clear()
    state.effects.append(NodeUp(number, message.node, message.cpus, message.named))


def _on_node_gone(state: State, number: int, cluster: Cluster, message: NodeGone) -> None:
    node = cluster.nodes.pop(message.node, None)
    if node is None:
        return
    state.effects.append(NodeDown(number, node.id, message.reason))
    if node.id in cluster.leaving:
        cluster.leaving.discard(node.id)
    elif not cluster.closing:
        text = (
            f"cluster {cluster.name!r} has lost node {node.name} {node.address}: {message.reason}"
        )
        state.effects.append(Warned(text))


def _on_node_trouble(state: State, number: int, cluster: Cluster, message: NodeTrouble) -> None:
    troubles = cluster.troubles
    if troubles.get(message.address) == message.reason:
        return
    if message.address not in troubles and len(troubles) >= TROUBLES_MAX:
        return
    troubles[message.address] = message.reason
    where = "" if message.address == BROKER else f" can't use node {message.address}"
    text = f"cluster {cluster.name!r}{where}: {message.reason}"
    state.effects.append(Warned(f"{text}; still trying" if where else text))


def _arrives(state: State, number: int, cluster: Cluster, record: JobRecord) -> bool:
    """Whether a record is new; what was heard before is said once more."""
    report = cluster.reports.get(record.seq)
    if report is None or report.attempt < record.attempt:
        if report is not None:
            state.effects.append(Silent(number, [record.seq]))
        report = Report(record.attempt, record.number - 1)
        cluster.reports[record.seq] = report
    if report.attempt > record.attempt:
        return False
    if record.number <= report.heard:
        cluster.heard.append(Heard(record.seq, record.attempt, report.heard))
        state.sendable[number] = None
    return report.arrive(record.number)


HANDLERS: dict[type[Any], Callable[..., None]] = {
    Answer: _on_answer,
    JobsRequeued: _on_requeued,
    JobsRunning: _on_running,
    NeedBlobs: _on_need,
    NodeGone: _on_node_gone,
    NodeOffer: _on_offer,
    NodeReady: _on_node_ready,
    NodeTrouble: _on_node_trouble,
    NodeVitals: _on_vitals,
    Records: _on_records,
}
