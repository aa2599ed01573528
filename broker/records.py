"""What running jobs say, on its way to their clients, and what the clients answer.

Only the latest attempt of a job is heard. Whatever else a node still runs is told at once that
nobody listens, so that it goes on and ends.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dispy.protocol.messages import RECORDS_AHEAD, Heard, JobRecord, Records, RecordsHeard

from .state import Allocation, Cluster, Job, Node, State

NOBODY = "nobody waits for this attempt of the job any more"
LAST = (1 << 63) - 1  # all records that an attempt may have sent


def _on_records(state: State, peer: str, message: Records, now: float) -> None:
    node = state.node(peer)
    cluster = state.clusters.get(message.cluster)
    if cluster is None or cluster.closing:
        return  # the node has been told to release it
    current = [record for record in message.records if _is_current(cluster, node, record)]
    if current:
        state.tell(cluster, Records(cluster.number, current, node.id))
    if len(current) < len(message.records):
        old = [record for record in message.records if not _is_current(cluster, node, record)]
        deaf = [Heard(each.seq, each.attempt, each.number, NOBODY) for each in old]
        state.send(peer, RecordsHeard(cluster.id, deaf))


def _is_current(cluster: Cluster, node: Node, record: JobRecord) -> bool:
    """Whether it is of the job's latest attempt; only one node has ever had that."""
    job = cluster.jobs.get(record.seq)
    if job is None or job.spec.attempt != record.attempt or record.attempt < 1:
        return False
    return job.allocation is None or job.allocation.node is node


def _on_records_heard(state: State, peer: str, message: RecordsHeard, now: float) -> None:
    cluster = state.cluster(peer, message.cluster)
    if cluster is None:
        return
    answers: dict[Allocation, list[Heard]] = {}
    for heard in message.jobs:
        job = cluster.jobs.get(heard.seq)
        if job is None or job.spec.attempt != heard.attempt:
            continue
        _remember(job, heard)
        if job.allocation is not None:
            answers.setdefault(job.allocation, []).append(heard)
    for allocation, jobs in answers.items():
        state.order(allocation, RecordsHeard(cluster.id, jobs))


def _remember(job: Job, heard: Heard) -> None:
    """Keep the answers that its node may not get, should it be lost now and come back."""
    if job.heard is None:
        job.heard = []
    job.heard.append(heard)
    del job.heard[:-RECORDS_AHEAD]


def answer_again(state: State, node: Node, held: list[tuple[int, int, int]]) -> None:
    """Answer once more what a node's jobs have said: a new session may have lost the answers.

    Else a job could wait for ever to be heard; nobody sends it again.
    """
    answers: dict[int, list[Heard]] = {}
    for computation, seq, attempt in held:
        cluster = state.clusters.get(computation)
        job = None if cluster is None else cluster.jobs.get(seq)
        if job is None:
            answers.setdefault(computation, []).append(Heard(seq, attempt, LAST, NOBODY))
        elif job.spec.attempt == attempt and job.heard:
            answers.setdefault(computation, []).extend(job.heard)
    for computation, heard in answers.items():
        state.send(node.peer, RecordsHeard(computation, heard))


HANDLERS: dict[type[Any], Callable[..., None]] = {
    Records: _on_records,
    RecordsHeard: _on_records_heard,
}
