"""What people call clusters: a label, ``user:label``, or a number."""

from __future__ import annotations

from collections.abc import Iterable

from dispy.protocol.messages import SERIALS

from .state import Cluster, State

LABEL_CHARS = 200


def label_of(cluster: Cluster) -> str:
    """Return what people call a cluster."""
    return (cluster.opened.label or cluster.computation.name)[:LABEL_CHARS]


def title_of(cluster: Cluster) -> str:
    """Return the label, whose it is, and the number, for a text."""
    return f"{cluster.meta.user[:LABEL_CHARS]}:{label_of(cluster)} (number {cluster.id % SERIALS})"


def titles_of(clusters: Iterable[Cluster], limit: int) -> str:
    """Return the titles of some clusters; those of one number get the whole one."""
    listed = list(clusters)
    shorts = [each.id % SERIALS for each in listed]
    titles = [
        title_of(each) if shorts.count(each.id % SERIALS) == 1 else f"{label_of(each)} ({each.id})"
        for each in listed[:limit]
    ]
    return ", ".join(titles) + (f" and {len(listed) - limit} more" if len(listed) > limit else "")


def named(state: State, name: str, user: str = "") -> list[Cluster]:
    """Return the clusters that people mean by a name.

    ``user:label`` takes the user's login, or login@host. Of several with one label, those of
    ``user`` are meant if there are such.
    """
    clusters = list(state.clusters.values())
    found = [each for each in clusters if name in _names(each)]
    if not found and name.isdecimal():
        number = int(name)
        found = [each for each in clusters if each.id == number]
        found = found or [each for each in clusters if each.id % SERIALS == number]
    own = [each for each in found if user and each.meta.user == user]
    return own or found


def _names(cluster: Cluster) -> tuple[str, str, str]:
    label, user = label_of(cluster), cluster.meta.user
    return label, f"{user}:{label}", f"{user.partition('@')[0]}:{label}"
