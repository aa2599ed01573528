"""Clusters give their waiting jobs to nodes in turn; their clients then send more.

Whose turn it is, `sharing` says; which node is best, `placement`. Called once for each flush,
however much has happened since the last one. What it costs grows with what can be placed, not with
the number of clusters that wait in vain.
"""

from __future__ import annotations

import heapq

from dispy.protocol.messages import Credit, Withdraw

from . import batches
from .placement import (
    catch_up,
    charge,
    extra,
    has_room,
    held,
    is_usable,
    least_loaded,
    load_of,
    look,
    may_have_more,
    may_take,
    newly_free,
    put,
)
from .sharing import Account
from .state import Allocation, Cluster, Job, Node, State

CREDIT = 256  # jobs that a cluster may send before the broker knows how fast they go
CREDIT_PER_CPU = 8  # ... and in the line for each CPU, beside what the nodes hold
CREDIT_PINNED = 4096  # waiting for one node each, they leave so much room for others
TURN_S = 0.005  # work that a cluster places before it is the next one's turn; one job at least
TURN_MAX = 64  # ... and so many jobs at most
WORTH_S = 0.002  # less work than this is not taken back from a node

Free = list[tuple[float, int, Node]]  # a heap of nodes by load


def place(state: State) -> None:
    """Give waiting jobs to nodes, clusters taking turns, until nodes or jobs run out."""
    sharing = state.sharing
    if state.charged:
        charge(state)
    free = newly_free(state)
    if not free and not sharing.ready.count:
        return
    if state.now >= sharing.look_at:
        look(state)
    stuck: list[Account] = []
    while True:
        account = sharing.next(bool(free))
        if account is None:
            break
        if not _serve(state, account, free):
            stuck.append(account)
            assert account.line is not None
            account.line.queue.remove(account)
    for account in stuck:
        cluster = account.cluster
        assert cluster is not None
        sharing.block(account, not cluster.line.waiting)


def _serve(state: State, account: Account, free: Free) -> bool:
    """Have a cluster place some jobs; False if there is no room for those that are left."""
    cluster, user = account.cluster, account.user
    assert cluster is not None and user is not None
    tag, user_tag = account.tag, user.tag
    turn = _turn(state, cluster)
    if account.blocked:
        placed = _place_where_free(state, cluster, free, turn)
    else:
        placed = _place_anywhere(state, cluster, turn)
    if placed:
        if cluster.placed >= cluster.grant_at:
            state.uncredited[cluster] = None
        state.sharing.served(account, tag, user_tag)
        account.settle(held(cluster), state.now)
    if cluster.surplus:
        state.hoarders[cluster] = None
    if not (cluster.line.waiting or cluster.pinned):
        cluster.in_turns = False
        state.sharing.leave(account)
        return True
    return placed >= turn


def _turn(state: State, cluster: Cluster) -> int:
    """Return how many jobs a cluster may place before it is another one's turn."""
    sharing = state.sharing
    if sharing.is_fifo or sharing.ready.count + sharing.blocked.count == 1:
        return cluster.line.waiting + cluster.pinned
    est_s = cluster.account.est_s
    return 1 if est_s > TURN_S else min(int(TURN_S / est_s), TURN_MAX)


# -- where there is room ------------------------------------------------------------------------


def _place_where_free(state: State, cluster: Cluster, free: Free, turn: int) -> int:
    """Place jobs at nodes that have just become free; all others are known to be full."""
    placed, number = 0, cluster.id
    unfit: Free = []
    while free and placed < turn:
        node = free[0][2]
        cpus = node.identity.cpus
        if node.load >= cpus and not has_room(node):
            heapq.heappop(free)
            continue
        allocation = node.allocations.get(number)
        job = None if allocation is None else _next_for(cluster, allocation)
        if job is None or allocation is None:
            unfit.append(heapq.heappop(free))
            continue
        _give(state, job, allocation)
        placed += 1
        if node.load < cpus or has_room(node):
            heapq.heapreplace(free, (load_of(node), node.id, node))
        else:
            heapq.heappop(free)
    for entry in unfit:
        heapq.heappush(free, entry)
    return placed


def _next_for(cluster: Cluster, allocation: Allocation) -> Job | None:
    """Take the job that goes to an allocation of a node with room next; None: there is none."""
    if not allocation.is_open or not may_have_more(allocation):
        return None
    line, pinned = cluster.line, allocation.pinned
    if pinned is None or not pinned.waiting:
        return line.take() if line.waiting else None
    if line.waiting and line.top() > pinned.top():
        return line.take()
    cluster.pinned -= 1
    return pinned.take()


def _place_anywhere(state: State, cluster: Cluster, turn: int) -> int:
    """Place jobs at the least loaded nodes of all."""
    catch_up(state, cluster)
    line = cluster.line
    placed = 0
    if cluster.open_pinned:
        placed = _place_pinned(state, cluster, turn, line.top() if line.waiting else None)
    while placed < turn and line.waiting:
        allocation = least_loaded(cluster)
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
        while line.waiting and is_usable(allocation) and may_take(allocation):
            if placed >= turn:
                return placed
            if least is not None and line.top() < least:
                break  # jobs for any node go first
            _give(state, line.take(), allocation)
            cluster.pinned -= 1
            placed += 1
        else:
            del cluster.open_pinned[allocation]  # offered again when a place becomes free
    return placed


def _give(state: State, job: Job, allocation: Allocation) -> None:
    spec = job.spec
    if spec.attempt == 0:
        allocation.cluster.placed += 1
    else:
        job.started = None
        job.heard = None
    spec.attempt += 1
    node = allocation.node
    if node.load < node.identity.cpus and len(allocation.jobs) < allocation.cpus:
        node.distance.sent(job, state.now)
    put(job, allocation)
    run = state.runs.get(allocation)
    if run is None:
        state.runs[allocation] = [spec]
    else:
        run.append(spec)


# -- what others could do sooner ------------------------------------------------------------------


def take_back(state: State) -> None:
    """Nodes that have become idle get what others hold ahead, if that is worth the way."""
    idle, state.idle_nodes = state.idle_nodes, {}
    if not state.hoarders:
        return
    for node in idle:
        room = node.identity.cpus - node.load
        if room <= 0 or not node.online:
            continue
        for cluster in list(state.hoarders):
            if not cluster.surplus:
                del state.hoarders[cluster]
                continue
            allocation = node.allocations.get(cluster.id)
            if allocation is not None and allocation.is_open and not cluster.line.waiting:
                _withdraw(state, cluster, room)


def _withdraw(state: State, cluster: Cluster, room: int) -> None:
    account = cluster.account
    for allocation in list(cluster.surplus):
        more = extra(allocation)
        if allocation.withdrawing or allocation.stubborn or not allocation.node.online:
            continue
        if more <= 0 or allocation in state.runs:
            continue
        if more * account.est_s < WORTH_S * allocation.cpus and not account.started:
            continue
        allocation.withdrawing = True
        count = -(-more // 2)
        state.order(allocation, Withdraw(cluster.id, count))
        room -= count
        if room <= 0:
            return


def grant(state: State, cluster: Cluster) -> None:
    """Ask the client for more jobs: enough to keep the nodes busy, not more."""
    if state.settings.durable:
        batches.grant(state, cluster)
        return
    room = max(CREDIT, cluster.capacity * (CREDIT_PER_CPU + 2 * cluster.ahead))
    limit = cluster.placed + room + min(cluster.pinned, CREDIT_PINNED)
    missing = room // 4 - (limit - cluster.credit)
    cluster.grant_at = cluster.placed + missing
    if missing <= 0:
        cluster.credit = limit
        cluster.grant_at += room // 4
        state.tell(cluster, Credit(cluster.number, limit))
