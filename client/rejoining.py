"""What a new session with a broker changes: functions over the client core's state. Pure.

A broker that is still there, or has a journal, knows its clusters: what it has accepted stays
with it, and what was on its way is sent again. One that has forgotten a cluster may have run
the jobs that it had; so these are only run again if they may run twice.
"""

from __future__ import annotations

from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    CLOSE,
    DEALLOCATE,
    RESETUP,
    CancelJobs,
    CloseCluster,
    ClusterOpened,
    FollowJobs,
    Heard,
    NodeRequest,
    SendFile,
)

from .effects import Known, NodeDown, Send, Silent, Warned
from .endings import answer_all, end_here, forget
from .job import DispyJob
from .ranges import Ranges
from .sending import take_back
from .state import Cluster, State

LEAVING = {CLOSE, DEALLOCATE, RESETUP}  # actions after which a node is not lost but wanted gone
LOST = "the connection to the broker was lost"
FORGOTTEN = (
    "the broker has forgotten the cluster (it was started without its journal, or had given this "
    "program up), so this job may have run or not"
)
NODE_FORGOTTEN = "the broker has forgotten the node that this job was for"


def join(state: State) -> None:
    """A session with the broker begins; what it still knows of us, it says in `ClusterOpened`."""
    state.joined = True
    state.unreachable = ""
    for number, cluster in list(state.clusters.items()):
        if cluster.closing:  # there is nothing left that could be lost
            forget(state, number, cluster)
        else:
            _reopen(state, number, cluster)
    for number in state.unclosed:
        state.effects.append(Send(CloseCluster(number)))


def leave(state: State) -> None:
    """The session is over. Jobs wait for the next one, clusters that close are closed."""
    state.joined = False
    for number, cluster in list(state.clusters.items()):
        cluster.opened = False
        if cluster.closing:
            forget(state, number, cluster)
        else:
            answer_all(state, number, cluster, LOST)


def _reopen(state: State, number: int, cluster: Cluster) -> None:
    """Say what the cluster is; what comes of its jobs, the answer decides."""
    for node in cluster.nodes:
        state.effects.append(NodeDown(number, node, LOST))
    cluster.nodes.clear()
    cluster.leaving.clear()
    cluster.opened = False
    cluster.credit = cluster.sent = 0
    state.effects.append(Send(cluster.opening))
    questions, cluster.questions = cluster.questions, []
    answer_all(state, number, cluster, LOST)  # those that were asked in the last session
    for question in questions:
        ask(state, cluster, question)


def ask(state: State, cluster: Cluster, message: NodeRequest | SendFile) -> None:
    """Ask the broker for something, and remember that it was asked."""
    if isinstance(message, NodeRequest) and message.action in LEAVING:
        cluster.leaving.add(message.node)
    cluster.asked[message.request] = None
    state.effects.append(Send(message))


def on_opened(state: State, number: int, cluster: Cluster, message: ClusterOpened) -> None:
    """The broker says what it knows of the cluster."""
    if not cluster.opened:
        cluster.opened = True
        if message.known:
            _resume(state, number, cluster)
        else:
            _start_over(state, number, cluster)
    cluster.credit = max(cluster.credit, message.credit)
    state.sendable[number] = None
    state.effects.append(Known(number, message.computation))


def _resume(state: State, number: int, cluster: Cluster) -> None:
    """What was accepted stays with the broker; say again what it may not have got."""
    cluster.sent = cluster.accepted.count
    if cluster.cancelled:
        state.effects.append(Send(CancelJobs(number, list(cluster.cancelled))))
    unsure = [seq for seq in cluster.away if seq not in cluster.accepted]
    take_back(state, number, cluster, unsure)
    followed = [seq for seq in sorted(cluster.away) if _is_followed(cluster, seq)]
    if followed:
        state.effects.append(Send(FollowJobs(number, followed)))
    reports = cluster.reports.items()
    cluster.heard += [Heard(seq, report.attempt, report.heard) for seq, report in reports]


def _end_pinned(state: State, number: int, cluster: Cluster) -> None:
    """End jobs that wait for one node: to another broker its id may mean any node."""
    pinned = [seq for seq, job in cluster.unfinished.items() if _is_pinned(job)]
    begun = [seq for seq in pinned if seq in cluster.away]
    unsent = [seq for seq in pinned if seq not in cluster.away]
    end_here(state, number, cluster, begun, ABANDONED, FORGOTTEN)
    end_here(state, number, cluster, unsent, CANCELLED, NODE_FORGOTTEN)


def _is_pinned(job: DispyJob) -> bool:
    spec = job._spec
    return spec is not None and spec.options is not None and spec.options.node != 0


def _is_followed(cluster: Cluster, seq: int) -> bool:
    spec = cluster.unfinished[seq]._spec
    return spec is not None and spec.options is not None and spec.options.follow


def _start_over(state: State, number: int, cluster: Cluster) -> None:
    """Nothing is left of the cluster at the broker; to some jobs that may have happened."""
    cluster.accepted = Ranges()
    cluster.sent = 0
    cluster.heard.clear()
    cluster.results_heard.clear()
    if cluster.reports:
        state.effects.append(Silent(number, list(cluster.reports)))
        cluster.reports.clear()
    end_here(state, number, cluster, list(cluster.cancelled), CANCELLED)
    if cluster.met:
        _end_pinned(state, number, cluster)
    if not cluster.away:
        return
    away = sorted(cluster.away)
    if cluster.opening.reentrant:
        take_back(state, number, cluster, away)
        outcome = "are run again"
    else:
        end_here(state, number, cluster, away, ABANDONED, FORGOTTEN)
        outcome = "are Abandoned, since it isn't reentrant"
    text = (
        f"the broker has forgotten cluster {cluster.name!r}: {len(away)} jobs that it had {outcome}"
    )
    state.effects.append(Warned(text))
