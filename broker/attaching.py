"""How a client takes a cluster over: its program has died, or runs at another machine now.

The cluster goes on as it is; only whose it is changes. Whoever had it is told so, now or when it
comes back, for as long as that is remembered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from dispy.protocol.messages import Attach, Attached, ClusterLost

from .backlog import unended
from .batches import ranges
from .clients import tell_all
from .closing import forget_if_absent
from .effects import DropTaken, KeepTaken
from .naming import label_of, named, titles_of
from .records import say_unsaid
from .state import Client, Cluster, State
from .unheard import count

TAKEN_MAX = 10_000  # clusters that were taken from their clients, of which that is remembered
BEFORE_MAX = 10  # of those that have had a cluster before
NAMES_MAX = 20  # clusters that are named in one text


def _on_attach(state: State, peer: str, message: Attach, now: float) -> None:
    client = state.client(peer)
    found = _find(state, client, message)
    if isinstance(found, Cluster):
        found = _refusal(state, client, found, message) or found
    if not isinstance(found, Cluster):
        state.send(peer, ClusterLost(message.cluster, found))
        return
    if found.client is not client:
        _move(state, found, client, message.cluster)
    _say_attached(state, found)
    say_unsaid(state, found)
    tell_all(state, found)


# -- which one is meant ---------------------------------------------------------------------


def _find(state: State, client: Client, message: Attach) -> Cluster | str:
    """Return the cluster that is meant, or why there is none such."""
    if message.owner:
        cluster = _of_owner(state, message.owner, message.number)
        return cluster or "the broker doesn't know the cluster (any more)" + _list(state, client)
    found = named(state, message.label, client.user)
    if len(found) == 1:
        return found[0]
    if not found:
        return f"there is no cluster {message.label!r}" + _list(state, client)
    which = titles_of(found, NAMES_MAX)
    return f"there are {len(found)} clusters {message.label!r}; say which by its number: {which}"


def _of_owner(state: State, owner: str, number: int) -> Cluster | None:
    """Return the cluster that a client has opened, whosever it is now."""
    client = state.clients.get(owner)
    cluster = None if client is None else client.clusters.get(number)
    return cluster or state.clusters.get(state.taken.get((owner, number), 0))


def _list(state: State, client: Client) -> str:
    """Say which clusters there are instead, those of the same user if there are any."""
    clusters = list(state.clusters.values())
    own = [each for each in clusters if each.meta.user == client.user] or clusters
    if not own:
        return "; there is none at all"
    return "; there are: " + titles_of(own, NAMES_MAX)


def _refusal(state: State, client: Client, cluster: Cluster, message: Attach) -> str:
    """Say why the cluster can't be taken over; nothing if it can."""
    owner = cluster.client
    if owner is client:
        its = cluster.number == message.cluster
        return "" if its else f"it is this program's already, as number {cluster.number}"
    if message.cluster in client.clusters or (client.peer, message.cluster) in state.unopened:
        return f"this program has another cluster with number {message.cluster}"
    if cluster.closing and not cluster.meta.expired:
        return "the cluster is being closed"
    if owner.away_since is None and not message.force:
        return f"its program is running, at {owner.name} ({owner.user or 'no user'})"
    return ""


# -- taking it over -------------------------------------------------------------------------


def _move(state: State, cluster: Cluster, client: Client, number: int) -> None:
    owner, old = cluster.client, cluster.number
    del owner.clusters[old]
    state.tell(cluster, ClusterLost(old, f"it was taken over by {client.name} ({client.user})"))
    meta = cluster.meta
    others = [each for each in meta.before if each != (client.peer, number)]
    meta.before = [*others, (owner.peer, old)][-BEFORE_MAX:]
    meta.owner, meta.number, meta.away_since = client.peer, number, 0.0
    cluster.opened = msgspec.structs.replace(cluster.opened, cluster=number)
    cluster.client = client
    client.clusters[number] = cluster
    _note_taken(state, cluster, (owner.peer, old), (client.peer, number))
    state.keep(cluster)
    forget_if_absent(state, owner)


def _note_taken(
    state: State, cluster: Cluster, loser: tuple[str, int], taker: tuple[str, int]
) -> None:
    """Remember from whom a cluster was taken, also when it and this broker have ended."""
    gone = [taker] if state.taken.pop(taker, None) else []
    state.taken.pop(loser, None)
    state.taken[loser] = cluster.id
    if len(state.taken) > TAKEN_MAX:
        gone.append(next(iter(state.taken)))
        del state.taken[gone[-1]]
    if state.settings.durable:
        state.effects += [DropTaken(*each) for each in gone]
        state.effects.append(KeepTaken(*loser, cluster.id))


def remember(state: State, cluster: Cluster) -> None:
    """Remember from whom a cluster was taken that was kept."""
    for key in cluster.meta.before:
        state.taken.setdefault(key, cluster.id)


def _say_attached(state: State, cluster: Cluster) -> None:
    spec = cluster.computation
    pending = list(ranges(sorted(unended(cluster))))
    is_program = bool(spec.program)
    unheard = count(cluster)
    attached = Attached(cluster.number, cluster.id, label_of(cluster), pending, unheard, is_program)
    state.tell(cluster, attached)


HANDLERS: dict[type[Any], Callable[..., None]] = {
    Attach: _on_attach,
}
