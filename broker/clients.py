"""Clients come and go, and open and close clusters.

A client that can't be reached has a lease. With a journal its session ends long before that: what
it isn't told then is told when it is back, or when another one takes its clusters over. When
the lease ends, its clusters are closed; results that it hasn't heard are kept for a longer time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dispy.protocol.messages import (
    Body,
    CloseCluster,
    ClusterClosed,
    ClusterLost,
    ClusterOpened,
    Identity,
    JobsRunning,
    NodeTrouble,
    OpenCluster,
)

from .batches import WINDOW
from .blobs import ask_again, ask_soon
from .closing import close_cluster, expire, forget_if_absent
from .durable import ClusterMeta
from .effects import Dial, Forget
from .exclusive import BROKER, enter, say_why
from .matching import addresses
from .records import say_unsaid
from .setups import allocate, define, make_offer, say_ready
from .state import Allocation, Client, Cluster, Stage, State
from .turns import CREDIT
from .unheard import send_again, tell_untold

RETAIN_MIN_S = 3600.0  # after a start nothing is dropped so soon: the clock may have been wrong
SESSION_S = 30.0  # a client that is away for longer gets a new session, if there is a journal
FOREVER = float("inf")
TAKEN = "it was taken over by another program"


def client_joined(state: State, peer: str, identity: Identity, undelivered: list[Body]) -> None:
    """A client has registered: say again what it may have missed."""
    client = state.clients.setdefault(peer, Client(peer))
    client.user, client.name = identity.user, identity.name
    _note_there(state, client)
    for key in [key for key in state.unopened if key[0] == peer]:
        del state.unopened[key]  # it opens them again
    for message in undelivered:
        state.send(peer, message)
    for cluster in client.clusters.values():
        say_unsaid(state, cluster)
    ask_again(state, client)


def client_back(state: State, client: Client) -> None:
    """A client that was away can be reached again, and nothing was lost."""
    _note_there(state, client)
    ask_soon(state)
    for cluster in client.clusters.values():
        tell_untold(state, cluster)


def _note_there(state: State, client: Client) -> None:
    client.away_since, client.lost_at, client.absent = None, FOREVER, False
    for cluster in client.clusters.values():
        if cluster.meta.away_since:
            cluster.meta.away_since = 0.0
            state.keep(cluster)


def client_away(state: State, client: Client, now: float) -> None:
    """A client can't be reached: its lease runs."""
    if client.away_since is None:
        client.away_since = now
        client.lost_at = now + state.settings.client_lease_s
        state.clients_due = min(state.clients_due, _due(state, client))


def client_left(state: State, peer: str) -> None:
    """A client is gone for good, and with it its clusters.

    Those that it had taken over stay for the next one who takes them over, as if it were away.
    """
    client = state.clients.get(peer)
    if client is None:
        return
    stay = state.settings.durable
    for cluster in list(client.clusters.values()):
        if not (stay and cluster.meta.before):
            close_cluster(state, cluster)
    if any(cluster.meta.before for cluster in client.clusters.values()) and stay:
        client_away(state, client, state.now)
        _end_session(state, client)
    else:
        del state.clients[peer]


def returning(state: State, meta: ClusterMeta, now: float) -> Client:
    """Return the client of a cluster that was kept: away, with a new lease, since the start."""
    client = state.clients.get(meta.owner)
    if client is None:
        client = state.clients[meta.owner] = Client(meta.owner, user=meta.user)
        client.away_since, client.absent = now, True
    today = now + state.wall_offset_s
    meta.away_since = min(meta.away_since or today, today)  # the clock may have been wrong
    if not meta.expired:
        client.lost_at = now + state.settings.client_lease_s
    state.clients_due = now  # to find out when something is to be done
    return client


# -- time passes ----------------------------------------------------------------------------


def look_after(state: State, now: float) -> None:
    """End sessions, leases and retentions of clients that are away."""
    for client in [each for each in state.clients.values() if each.away_since is not None]:
        if now >= client.lost_at:
            _give_up(state, client)
        elif now >= _session_ends(state, client):
            _end_session(state, client)
        for cluster in [each for each in client.clusters.values() if each.meta.expired]:
            if now >= _kept_until(state, cluster):
                close_cluster(state, cluster)
    state.clients_due = min((_due(state, each) for each in state.clients.values()), default=FOREVER)


def give_time(state: State, seconds: float, now: float) -> None:
    """Let the leases of clients that are away end so much later."""
    for client in state.clients.values():
        client.lost_at += seconds
    state.clients_due = min(state.clients_due, now)


def _due(state: State, client: Client) -> float:
    """When something is to be done about a client."""
    if client.away_since is None:
        return FOREVER
    ends = [client.lost_at, _session_ends(state, client)]
    ends += [_kept_until(state, each) for each in client.clusters.values() if each.meta.expired]
    return min(ends)


def _session_ends(state: State, client: Client) -> float:
    if client.away_since is None or client.absent:
        return FOREVER
    if client.clusters and not state.settings.durable:
        return FOREVER  # the session has what it wasn't told
    return client.away_since + SESSION_S


def _kept_until(state: State, cluster: Cluster) -> float:
    if not cluster.meta.away_since:
        return FOREVER  # its client has a session
    retain_s = state.settings.retain_s
    until = cluster.meta.away_since + retain_s - state.wall_offset_s
    least_s = min(RETAIN_MIN_S, retain_s)
    return max(until, state.recovering_until and state.recovering_until + least_s)


def _end_session(state: State, client: Client) -> None:
    """Keep nothing more for a client beside its clusters."""
    assert client.away_since is not None
    client.absent = True
    state.effects.append(Forget(client.peer))
    for cluster in client.clusters.values():
        cluster.meta.away_since = client.away_since + state.wall_offset_s
        state.keep(cluster)
    forget_if_absent(state, client)


def _give_up(state: State, client: Client) -> None:
    """A client's lease has ended."""
    client.lost_at = FOREVER
    if not state.settings.durable:
        del state.clients[client.peer]
        state.effects.append(Forget(client.peer))
    elif not client.absent:
        _end_session(state, client)
    seconds = state.settings.client_lease_s
    reason = f"the program that submitted it could not be reached for {seconds:g} s"
    for cluster in [each for each in client.clusters.values() if not each.closing]:
        expire(state, cluster, reason)
    forget_if_absent(state, client)


# -- clusters are opened --------------------------------------------------------------------


def _on_open(state: State, peer: str, message: OpenCluster, now: float) -> None:
    client = state.client(peer)
    cluster = client.clusters.get(message.cluster)
    key = (peer, message.cluster)
    if cluster is not None:
        _open_again(state, cluster, message)
    elif key in state.taken:
        state.send(peer, ClusterLost(message.cluster, TAKEN))
    elif state.trouble:
        state.unopened[key] = message
        state.send(peer, NodeTrouble(message.cluster, BROKER, state.trouble))
    else:
        _open(state, client, message)


def _open(state: State, client: Client, message: OpenCluster) -> None:
    state.cluster_ids += 1
    specs = list(message.nodes)
    if state.settings.pulse_s:
        message.computation.pulse_interval = state.settings.pulse_s
    cluster = Cluster(state.cluster_ids, client, message, message.computation, specs, set())
    opened_at = state.now + state.wall_offset_s
    cluster.meta = ClusterMeta(client.peer, message.cluster, client.user, opened_at)
    cluster.asks = message.asks
    cluster.credit = WINDOW if state.settings.durable else CREDIT
    client.clusters[message.cluster] = state.clusters[cluster.id] = cluster
    state.keep(cluster, whole=True)
    _say_opened(state, cluster, False)
    _begin(state, cluster)


def _begin(state: State, cluster: Cluster) -> None:
    """Ask for nodes, unless others have to be closed before."""
    wanted = addresses(cluster.specs)
    cluster.addresses, cluster.untried = wanted, set(wanted)
    cluster.begun_at = state.now
    for address in sorted(wanted):
        state.effects.append(Dial(address))
    enter(state, cluster)
    for node in list(state.nodes.values()):
        allocate(state, cluster, node)


def _open_again(state: State, cluster: Cluster, message: OpenCluster) -> None:
    """A client has begun a new session: tell it all that it may not know."""
    _say_opened(state, cluster, True)
    if cluster.meta.expired:
        _revive(state, cluster)
    new = message.computation.layers[len(cluster.computation.layers) :]
    if new and not cluster.closing:
        define(state, cluster, new)  # it has said so before, but that was lost
    tell_all(state, cluster)


def _say_opened(state: State, cluster: Cluster, known: bool) -> None:
    durable = state.settings.durable
    opened = ClusterOpened(cluster.number, cluster.credit, cluster.id, known, durable)
    state.tell(cluster, opened)


def _revive(state: State, cluster: Cluster) -> None:
    """Go on with a cluster that was given up: its client has come back after all."""
    cluster.closing = cluster.meta.closing = cluster.meta.expired = False
    state.keep(cluster)
    cluster.heap.clear()  # of allocations that it had before
    for allocation in cluster.allocations.values():
        allocation.listed = None
        allocation.anew = True  # as soon as it has been released
    _begin(state, cluster)


def tell_all(state: State, cluster: Cluster) -> None:
    """Tell a client what it can't know of a cluster: its nodes, and what hasn't been heard."""
    for allocation in cluster.allocations.values():
        if allocation.announced:
            say_ready(state, allocation)
            _tell_running(state, allocation)
        elif allocation.stage is Stage.OFFERED:
            make_offer(state, allocation)
    say_why(state, cluster)
    send_again(state, cluster)


def _tell_running(state: State, allocation: Allocation) -> None:
    cluster, node = allocation.cluster, allocation.node
    jobs = [(seq, job.started[0]) for seq, job in allocation.jobs.items() if job.started]
    if jobs:
        state.tell(cluster, JobsRunning(cluster.number, node.id, jobs))


def set_trouble(state: State, trouble: str) -> None:
    """Take no jobs and no new clusters any more, or do so again when the text is empty."""
    before, state.trouble = state.trouble, trouble
    if trouble or not before:
        return
    unopened, state.unopened = state.unopened, {}
    for (peer, _), message in unopened.items():
        client = state.clients.get(peer)
        if client is not None:
            _open(state, client, message)
    for cluster in state.clusters.values():
        state.uncredited[cluster] = None


# -- and closed -----------------------------------------------------------------------------


def _on_close(state: State, peer: str, message: CloseCluster, now: float) -> None:
    cluster = state.cluster(peer, message.cluster)
    state.unopened.pop((peer, message.cluster), None)
    if cluster is None:
        state.send(peer, ClusterClosed(message.cluster))
    else:
        close_cluster(state, cluster)


HANDLERS: dict[type[Any], Callable[..., None]] = {
    OpenCluster: _on_open,
    CloseCluster: _on_close,
}
