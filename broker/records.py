"""What running jobs say, on its way to their clients, and what the clients answer.

Only the latest attempt of a job is heard. Whatever else a node still runs is told at once that
nobody listens, so that it goes on and ends.
"""

from __future__ import annotations

from collections.abc import Callable, Container
from typing import Any

from dispy.protocol.messages import FILE, RECORDS_AHEAD, Heard, JobRecord, Records, RecordsHeard

from .state import Allocation, Cluster, Job, Node, State

NOBODY = "nobody waits for this attempt of the job any more"
LAST = (1 << 63) - 1  # all records that an attempt may have sent
INTERRUPTED = "the connection to the program was lost meanwhile"
UNSAID_JOBS = 1000  # jobs with files for an absent client, before those that ended are forgotten


def _on_records(state: State, peer: str, message: Records, now: float) -> None:
    node = state.node(peer)
    cluster = state.clusters.get(message.cluster)
    if cluster is None or cluster.closing:
        return  # the node has been told to release it
    current = [record for record in message.records if _is_current(cluster, node, record)]
    if current and cluster.client.absent:
        _keep_for_later(state, cluster, node, current)
    elif current:
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


# -- nobody is there to be told -------------------------------------------------------------


def _keep_for_later(state: State, cluster: Cluster, node: Node, records: list[JobRecord]) -> None:
    """A job goes on while its client is absent: nothing is kept of what it says but files.

    A job that sends files waits with them, and with all else that it says from then on.
    """
    unsaid = cluster.unsaid
    dropped: list[Heard] = []
    for record in records:
        if record.kind == FILE or record.seq in unsaid:
            unsaid.setdefault(record.seq, []).append((node.id, record))
            del unsaid[record.seq][:-RECORDS_AHEAD]  # no honest node says more
        else:
            dropped.append(Heard(record.seq, record.attempt, record.number))
    if dropped:
        state.send(node.peer, RecordsHeard(cluster.id, dropped))
    if len(unsaid) > 2 * UNSAID_JOBS:
        for seq in [seq for seq in unsaid if seq not in cluster.jobs]:
            del unsaid[seq]


def say_unsaid(state: State, cluster: Cluster) -> None:
    """Tell a client in a new session what was kept for it.

    Answers to what it was told before may be lost: what waits for them is refused.
    """
    unsaid, cluster.unsaid = cluster.unsaid, {}
    if state.settings.shared:
        for allocation in cluster.allocations.values():
            _refuse(state, allocation, unsaid)
    for seq, said in unsaid.items():
        job = cluster.jobs.get(seq)
        for node, record in said:
            if job is not None and job.spec.attempt == record.attempt:
                state.tell(cluster, Records(cluster.number, [record], node))


def _refuse(state: State, allocation: Allocation, unsaid: Container[int]) -> None:
    waiting = [
        Heard(seq, job.spec.attempt, LAST, INTERRUPTED)
        for seq, job in allocation.jobs.items()
        if seq not in unsaid
    ]
    if waiting:
        state.order(allocation, RecordsHeard(allocation.cluster.id, waiting))


# -- answers --------------------------------------------------------------------------------


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
