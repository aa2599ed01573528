"""Clusters take turns in giving their waiting jobs to nodes; their clients then send more.

Called once for each flush, however much has happened since the last one.
"""

from __future__ import annotations

from dispy.protocol.messages import Credit, Withdraw

from .placement import is_usable, least_loaded, may_take, put
from .state import Allocation, Cluster, Job, State

CREDIT = 256  # jobs that a cluster may send before the broker knows how fast they go
CREDIT_PER_CPU = 8  # ... and in the line for each CPU, beside what the nodes hold
CREDIT_PINNED = 4096  # waiting for one node each, they leave so much room for others
TURN = 16  # jobs that a cluster places before the next cluster's turn
WORTH_S = 0.002  # less work than this is not taken back from a node


def place(state: State) -> None:
    """Give waiting jobs to nodes, clusters taking turns, until nodes or jobs run out."""
    turns = state.turns
    stuck = 0
    while stuck < len(turns):
        cluster = turns.popleft()
        placed = _place_turn(state, cluster)
        if cluster.line.waiting or cluster.pinned:
            turns.append(cluster)
            stuck += not placed
        else:
            cluster.in_turns = False
        if placed:
            stuck = 0
            state.uncredited[cluster] = None


def _place_turn(state: State, cluster: Cluster) -> int:
    line = cluster.line
    turn = TURN if state.turns else line.waiting + cluster.pinned
    placed = 0
    if cluster.open_pinned:
        placed = _place_pinned(state, cluster, turn, line.top() if line.waiting else None)
    ahead, busy = cluster.ahead, state.busy
    while placed < turn and line.waiting:
        allocation = least_loaded(cluster, ahead, busy)
        if allocation is None:
            return placed
        _give(state, line.take(), allocation)
        placed += 1
    if cluster.open_pinned and not line.waiting:
        placed += _place_pinned(state, cluster, turn - placed, None)
    return placed


def _place_pinned(state: State, cluster: Cluster, turn: int, least: int | None) -> int:
    """Place jobs that one node each must run, if they are of this priority at least."""
    placed = 0
    for allocation in list(cluster.open_pinned):
        line = allocation.pinned
        assert line is not None
        while _has_room(state, allocation):
            if placed >= turn:
                return placed
            if least is not None and line.top() < least:
                break  # jobs for any node go first
            _give(state, line.take(), allocation)
            cluster.pinned -= 1
            placed += 1
        else:
            del cluster.open_pinned[allocation]  # offered again when a job of it ends
    return placed


def _has_room(state: State, allocation: Allocation) -> bool:
    if allocation.pinned is None or not allocation.pinned.waiting or not is_usable(allocation):
        return False
    return may_take(allocation, allocation.cluster.ahead, state.busy)


def _give(state: State, job: Job, allocation: Allocation) -> None:
    spec = job.spec
    if spec.attempt == 0:
        allocation.cluster.placed += 1
    else:
        job.started = None
        job.heard = None
    spec.attempt += 1
    put(job, allocation)
    run = state.runs.get(allocation)
    if run is None:
        state.runs[allocation] = [spec]
    else:
        run.append(spec)


def take_back(state: State) -> None:
    """Nodes that have become idle get what others hold ahead, if that is worth the way."""
    idle, state.idle_nodes = state.idle_nodes, {}
    for node in idle:
        room = node.identity.cpus - node.load
        if room <= 0 or not node.online:
            continue
        for cluster_id, allocation in node.allocations.items():
            cluster = state.clusters[cluster_id]
            if allocation.is_open and not cluster.line.waiting and cluster.surplus:
                _withdraw(state, cluster, room)


def _withdraw(state: State, cluster: Cluster, room: int) -> None:
    for allocation in list(cluster.surplus):
        extra = len(allocation.jobs) - allocation.cpus
        if allocation.withdrawing or allocation.stubborn or not allocation.node.online:
            continue
        if extra * cluster.run_s < WORTH_S * allocation.cpus or allocation in state.runs:
            continue
        allocation.withdrawing = True
        count = -(-extra // 2)
        state.order(allocation, Withdraw(cluster.id, count))
        room -= count
        if room <= 0:
            return


def grant(state: State, cluster: Cluster) -> None:
    """Ask the client for more jobs: enough to keep the nodes busy, not more."""
    room = max(CREDIT, cluster.capacity * (CREDIT_PER_CPU + 2 * cluster.ahead))
    limit = cluster.placed + room + min(cluster.pinned, CREDIT_PINNED)
    if limit - cluster.credit >= room // 4:
        cluster.credit = limit
        state.tell(cluster, Credit(cluster.number, limit))
