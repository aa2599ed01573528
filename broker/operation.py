"""What people ask of the broker as a whole: how it is, and what to do about nodes and clusters.

Each question is answered at once by one `Report`. Nodes and clusters are named as people name
them; a name that doesn't mean exactly one is answered by what there is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from dispy.protocol.messages import (
    CANCEL,
    CANCELLED,
    DRAIN,
    RESUME,
    SERIALS,
    STATUS,
    WHY,
    Operate,
    Report,
)

from .backlog import end_all, unended
from .closing import expire
from .drain import drain, node_of, resume
from .explain import explain, explain_cluster
from .naming import label_of, named, titles_of
from .overview import overview, running_at, why_barred
from .state import Cluster, Node, Past, State
from .submissions import cancel_jobs

ACTION_CHARS = 100  # of one that isn't known
TEXT_CHARS = 1 << 18  # of an answer, so that it fits into a message
NAMED_MAX = 20  # that a refusal names
JOBS_MAX = 100  # that one question may be about
BY_OPERATOR = "cancelled by an operator"


class Refusal(Exception):
    """What was asked for can't be done; the text says why, for people."""


def _on_operate(state: State, peer: str, message: Operate, now: float) -> None:
    state.client(peer)  # only clients may ask
    if message.action == STATUS:
        _say_status(state, peer, message.request)
        return
    report = Report(message.request)
    act = ACTIONS.get(message.action)
    try:
        if act is None:
            raise Refusal(f"this broker doesn't know how to {message.action[:ACTION_CHARS]!r}")
        report.text = act(state, message)[:TEXT_CHARS]
    except Refusal as refusal:
        report.error = str(refusal)[:TEXT_CHARS]
    state.send(peer, report)


def _say_status(state: State, peer: str, request: int) -> None:
    """Say how the broker is, in as many messages as it takes."""
    reports = overview(state)
    for number, status in enumerate(reports, 1):
        state.send(peer, Report(request, status=status, more=number < len(reports)))


# -- nodes ----------------------------------------------------------------------------------


def _drain(state: State, message: Operate) -> str:
    _, past = _find_place(state, message.target)
    node = node_of(state, past)
    if node is None:
        raise Refusal(f"node {past.name} is not registered at present, and already {_bars(past)}")
    drain(state, node, message.reason)
    left = sum(running_at(allocation) for allocation in node.allocations.values())
    return f"node {node.title} is drained: it gets no jobs; {_jobs(left)} may still run there"


def _resume(state: State, message: Operate) -> str:
    place, past = _find_place(state, message.target)
    node = node_of(state, past)
    title = past.name if node is None else node.title
    if not past.drained and not past.set_aside:
        if node is not None and node.out_of_service:
            raise Refusal(f"node {title} takes no jobs by itself: {node.out_of_service}")
        return f"node {title} was neither drained nor set aside"
    was = _bars(past)
    resume(state, place, past)
    if node is not None and node.barred:
        return f"node {title} was {was}; it takes no jobs yet by itself: {node.barred}"
    return f"node {title} was {was}, and is used again"


def _bars(past: Past) -> str:
    bars = [name for name, why in (("drained", past.drained), ("set aside", past.set_aside)) if why]
    return " and ".join(bars)


def _find_place(state: State, target: str) -> tuple[str, Past]:
    """Find a node by its number, name or address; also one that is barred and not there."""
    here = {id(node.past): node for node in state.nodes.values()}
    found = []
    for place, past in state.pasts.items():
        node = here.get(id(past))
        if (node is not None and _is_meant(node, target)) or (
            node is None and why_barred(past) and target in _names(past.name, past.address)
        ):
            found.append((place, past))
    if len(found) == 1:
        return found[0]
    if found:
        several = _some(f"{past.name} ({past.address})" for _, past in found)
        raise Refusal(f"several nodes are meant by {target!r}: {several}")
    known = _some(node.title for node in state.nodes.values())
    raise Refusal(f"there is no node {target!r}; {_there_are(known)}")


def _is_meant(node: Node, target: str) -> bool:
    if target == str(node.id):
        return True
    who = node.identity
    return target in _names(who.name, node.address) or target in _names(who.name, who.address)


def _names(name: str, address: str) -> tuple[str, ...]:
    """Return what a node may be called."""
    return (name, address, address.rpartition(":")[0].strip("[]")) if address else (name,)


# -- clusters and their jobs ----------------------------------------------------------------


def _cancel(state: State, message: Operate) -> str:
    cluster = find_cluster(state, message.target)
    title = f"cluster {cluster.id % SERIALS} ({label_of(cluster)})"
    if cluster.closing:
        raise Refusal(f"{title} has been closed, and has no jobs any more")
    if message.jobs:
        return _cancel_some(state, cluster, message.jobs, title)
    count = len(cluster.jobs) + cluster.backlog.waiting
    cancel_jobs(state, cluster, list(cluster.jobs), BY_OPERATOR)
    end_all(state, cluster, CANCELLED, BY_OPERATOR)
    done = f"{_jobs(count)} of {title} cancelled"
    if cluster.client.away_since is None:
        return done
    expire(state, cluster, BY_OPERATOR)
    return f"{done}; it is closed, since its client is away"


def _cancel_some(state: State, cluster: Cluster, seqs: list[int], title: str) -> str:
    left = set(unended(cluster))
    unknown = [seq for seq in seqs if seq not in left]
    cancel_jobs(state, cluster, seqs, BY_OPERATOR)
    done = f"{_jobs(len(seqs) - len(unknown))} of {title} cancelled"
    if not unknown:
        return done
    text = f"{done}; not waiting or running there: {_some(str(seq) for seq in unknown)}"
    if len(unknown) == len(seqs):
        raise Refusal(text)
    return text


def _why(state: State, message: Operate) -> str:
    cluster = find_cluster(state, message.target)
    if not message.jobs:
        return explain_cluster(state, cluster, state.now)
    if len(message.jobs) > JOBS_MAX:
        raise Refusal(f"at most {JOBS_MAX} jobs can be explained at a time")
    texts = [f"Job {seq}: {explain(state, cluster, seq, state.now)}" for seq in message.jobs]
    return "\n".join(texts)


def find_cluster(state: State, name: str) -> Cluster:
    """Return the cluster that is meant; `Refusal` if it isn't exactly one."""
    found = named(state, name)
    if len(found) == 1:
        return found[0]
    if found:
        several = titles_of(found, NAMED_MAX)
        raise Refusal(f"several clusters are meant by {name!r}; say which by number: {several}")
    known = titles_of(state.clusters.values(), NAMED_MAX)
    raise Refusal(f"there is no cluster {name!r}; {_there_are(known)}")


# -- words ----------------------------------------------------------------------------------


def _some(titles: Iterable[str]) -> str:
    """List some of many."""
    names = list(titles)
    more = f" and {len(names) - NAMED_MAX} more" if len(names) > NAMED_MAX else ""
    return ", ".join(names[:NAMED_MAX]) + more


def _there_are(titles: str) -> str:
    return f"there is {titles}" if titles else "there are none"


def _jobs(count: int) -> str:
    return "1 job" if count == 1 else f"{count} jobs"


ACTIONS: dict[str, Callable[[State, Operate], str]] = {
    DRAIN: _drain,
    RESUME: _resume,
    CANCEL: _cancel,
    WHY: _why,
}

HANDLERS: dict[type[Any], Callable[..., None]] = {
    Operate: _on_operate,
}
