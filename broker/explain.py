"""Why a job hasn't ended yet, in plain sentences for the user.

A pure function over the state. Nothing is kept for its sake that placement doesn't need, but for
when things began; a question costs time in proportion to the jobs and nodes of the cluster.
"""

from __future__ import annotations

from .backlog import before, waiting
from .exclusive import why
from .matching import entry_for
from .naming import label_of
from .placement import may_take
from .settings import FIFO
from .standing import Standing, standing
from .state import Allocation, Cluster, Job, Node, Stage, State

NODES_MAX = 10  # that are named in one text


def explain(state: State, cluster: Cluster, seq: int, now: float) -> str:
    """Say what a job waits for, or where it runs."""
    job = cluster.jobs.get(seq)
    if job is None:
        return " ".join(_absent(state, cluster, seq, now))
    said = (
        _placed(job, job.allocation, now) if job.allocation else _waiting(state, cluster, job, now)
    )
    return " ".join([*said, *_history(job)])


def explain_cluster(state: State, cluster: Cluster, now: float) -> str:
    """Say how a cluster stands, one thing in a line."""
    held = sum(len(each.jobs) for each in cluster.allocations.values())
    said = [
        f"{_count(waiting(cluster), 'job')} of cluster {label_of(cluster)!r} "
        f"{_waits(waiting(cluster))}, and nodes have {held}."
    ]
    return "\n".join([*said, *_nodes(state, cluster, now), *_rivals(state, cluster)])


def _absent(state: State, cluster: Cluster, seq: int, now: float) -> list[str]:
    """Say what is known of a job that is not in memory."""
    if seq in cluster.abandoned:
        return ["Its node was lost. Should that come back with a result, the job is finished."]
    position = before(cluster, seq)
    if position is not None:
        said = f"It waits on the broker's disk; {_goes_before(position)}."
        return [said, *_nodes(state, cluster, now), *_rivals(state, cluster)]
    if seq in cluster.seen:
        return ["It has ended."]
    said = "It has not been sent to the broker yet."
    if state.trouble:
        said += f" The broker takes no new jobs at present: {state.trouble}."
    return [said, *_nodes(state, cluster, now)]


def _history(job: Job) -> list[str]:
    options, said = job.spec.options, []
    if job.losses:
        said.append(f"{_count(job.losses, 'node')} that had it {_was(job.losses)} lost.")
    if options is not None and options.retries and job.failures:
        left = max(0, options.retries - job.failures)
        said.append(
            f"{_count(job.failures, 'attempt')} failed; "
            f"it may fail {_count(left, 'more time')} without being given up."
        )
    return said


# -- at a node ------------------------------------------------------------------------------


def _placed(job: Job, allocation: Allocation, now: float) -> list[str]:
    name = allocation.node.title
    said = []
    if job.started is not None:
        said.append(f"It has been running at node {name} for {_seconds(now - job.started[1])}.")
    else:
        said.append(
            f"It has been given to node {name}, which has "
            f"{_count(len(allocation.jobs), 'job')} of the cluster and runs "
            f"{allocation.cpus} at a time."
        )
    if job.cancelled:
        said.append("It was cancelled, and the node is ending it.")
    if not allocation.node.online:
        said.append(f"The node can't be reached at present; {_lease(allocation.node, now)}.")
    return said


def _lease(node: Node, now: float) -> str:
    return f"it is given up in {_seconds(node.lost_at - now)}"


# -- waiting --------------------------------------------------------------------------------


def _waiting(state: State, cluster: Cluster, job: Job, now: float) -> list[str]:
    position = list(cluster.line_of(job.spec)).index(job)
    said = [f"It waits; {_goes_before(position)}."]
    if job.spec.options is not None and job.spec.options.node:
        allocation = cluster.allocations[job.spec.options.node]
        said.append(f"Only node {allocation.node.title} may run it.")
        return [*said, _standing(state, allocation, now)]
    return [*said, *_nodes(state, cluster, now), *_rivals(state, cluster)]


def _nodes(state: State, cluster: Cluster, now: float) -> list[str]:
    """Say what is the matter with each node, first with those that the cluster has."""
    if cluster.waits:
        return [_sentence(why(state, cluster))]
    used = list(cluster.allocations.values())
    said = [_standing(state, allocation, now) for allocation in used]
    here = [each.node for each in used] + [node for node in state.nodes.values() if node.barred]
    named = {each.address for each in here} | {each.identity.name for each in here}
    for address, reason in {**state.unreached, **cluster.troubles}.items():
        if address not in named:
            said.append(f"{address} can't be used: {reason}.")
    others = [node for node in state.nodes.values() if cluster.id not in node.allocations]
    said += [_unused(cluster, node) for node in others]
    missing = (
        cluster.addresses
        - cluster.troubles.keys()
        - {node.address for node in state.nodes.values()}
    )
    said += [f"There has been no answer from {address} yet." for address in sorted(missing)]
    if not used:
        said.insert(0, "The cluster has no node.")
    if len(said) > NODES_MAX:
        said[NODES_MAX:] = [f"{_count(len(said) - NODES_MAX, 'other node')} can't take it either."]
    return said


def _unused(cluster: Cluster, node: Node) -> str:
    """Say why a cluster doesn't have a node at all."""
    if entry_for(cluster.specs, node) is None and node.peer not in cluster.shares:
        return f"Node {node.title} is not among those asked for."
    if node.barred:
        return f"Node {node.title} gets no jobs: {node.barred}."
    if not node.counted:
        return f"Node {node.title} has just come back."
    return f"No CPU of node {node.title} is left by what was asked for."


def _rivals(state: State, cluster: Cluster) -> list[str]:
    """Say how the CPUs are shared, when others want them as well."""
    others = [
        each
        for each in state.clusters.values()
        if each is not cluster and (each.jobs or each.backlog.waiting)
    ]
    if not others or cluster.waits:
        return []
    stand = standing(state, cluster)
    cpus = sum(node.identity.cpus for node in state.nodes.values() if not node.barred)
    said = [
        f"{_count(len(others), 'other cluster')} {_has(len(others))} jobs as well.",
        f"This one is entitled to {100 * stand.share:.0f} % of {_count(cpus, 'CPU')} at present; "
        f"it has {stand.cpus:.0f}, and has had {stand.used_s:.1f} s of CPU time.",
    ]
    if stand.place:
        said.append(f"It is number {stand.place} of {stand.waiting} that wait for CPUs.")
    return [*said, *_tags(state, stand)]


def _tags(state: State, stand: Standing) -> list[str]:
    """Say what decides who is next."""
    if state.settings.policy == FIFO:
        return ["The cluster that was opened first goes first."]
    return [
        f"The lowest goes first: by weight, its user has had {stand.user_tag:.1f} s (a newcomer "
        f"begins at {stand.user_clock:.1f} s), and it has had {stand.tag:.1f} s of that (a new "
        f"cluster of its user begins at {stand.clock:.1f} s)."
    ]


def _standing(state: State, allocation: Allocation, now: float) -> str:
    """Say why a node takes no further job of the cluster at present."""
    name, stage = f"Node {allocation.node.title}", allocation.stage
    if not allocation.node.online:
        return f"{name} can't be reached at present; {_lease(allocation.node, now)}."
    if not allocation.node.counted:
        return f"{name} has just come back."
    if allocation.node.barred and stage in (Stage.READY, Stage.PREPARING, Stage.OFFERED):
        return f"{name} gets no jobs: {allocation.node.barred}."
    if allocation.suspended and stage in (Stage.READY, Stage.PREPARING, Stage.OFFERED):
        return f"{name} was deallocated, and gets no jobs until it is allocated again."
    if stage is Stage.PREPARING:
        since = _seconds(now - allocation.since)
        return f"{name} has been setting the computation up for {since}{_files(state, allocation)}."
    if stage is Stage.FAILED:
        return f"{name} could not set the computation up: {allocation.error}."
    if stage is Stage.READY:
        return _load(state, allocation)
    return f"{name} {_STANDING[stage]}."


_STANDING = {
    Stage.OFFERED: "has been offered to the program, whose allocate() has not answered yet",
    Stage.UNUSED: "is not used, since allocate() returned 0 for it or no CPU is left of it",
    Stage.CLOSING: "is being closed, and gets no more jobs",
    Stage.RELEASING: "is being closed, and gets no more jobs",
    Stage.CLOSED: "was closed on request",
}


def _files(state: State, allocation: Allocation) -> str:
    """Say which files a node waits for that the broker hasn't got from the client so far."""
    names = [] if state.warehouse is None else state.warehouse.awaited(allocation)
    if not names:
        return ""
    others = f" and {_count(len(names) - 1, 'other')}" if len(names) > 1 else ""
    is_away = allocation.cluster.client.away_since is not None
    away = ", which is away" if is_away else ""
    return f"; it waits for the file {names[0]!r}{others}, still to come from the client{away}"


def _load(state: State, allocation: Allocation) -> str:
    name, node = f"Node {allocation.node.title}", allocation.node
    held, others = len(allocation.jobs), node.load - len(allocation.jobs)
    if may_take(allocation):
        return f"{name} has room, and gets jobs now."
    if held < allocation.cpus:
        return (
            f"{name} has {_count(held, 'job')} of the cluster, which is its share, since "
            f"it also has {_count(others, 'job')} of other clusters."
        )
    return f"{name} is busy with {_count(held, 'job')} of the cluster."


# -- words ----------------------------------------------------------------------------------


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _goes_before(number: int) -> str:
    return f"{_count(number, 'job')} of the cluster {'goes' if number == 1 else 'go'} before it"


def _has(number: int) -> str:
    return "has" if number == 1 else "have"


def _waits(number: int) -> str:
    return "waits" if number == 1 else "wait"


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


def _seconds(seconds: float) -> str:
    return f"{max(0.0, seconds):.0f} s"
