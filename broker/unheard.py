"""Results on their way to their client. With a journal, they are kept until it has heard them.

Those of a client that is there are in memory, and so are those of one that is away, up to a
bound; what comes beyond that is only on disk, and read when the client is back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dispy.protocol.messages import JobResult, Results, ResultsHeard

from .batches import new_record
from .effects import DropResults, KeepResults, LoadResults
from .state import Cluster, State

RESULTS_MAX = 10_000  # in one message
MEMORY_MAX = 64 << 20  # bytes of a cluster's results in memory while its client is away
READS_MAX = 32  # messages of one cluster that are read for one flush
RESULT_BYTES = 200  # what a result needs beside its payload


def say_results(state: State) -> None:
    """Tell clients how their jobs have ended."""
    durable = state.settings.durable
    for (cluster, node), ended in state.results.items():
        for part in [ended] if len(ended) <= RESULTS_MAX else _parts(ended):
            message = Results(cluster.number, node, part)
            if durable and (not cluster.closing or cluster.meta.expired):
                _keep(state, cluster, message)
            else:
                state.tell(cluster, message)
    state.results = {}


def _parts(ended: list[JobResult]) -> list[list[JobResult]]:
    return [ended[start : start + RESULTS_MAX] for start in range(0, len(ended), RESULTS_MAX)]


def _keep(state: State, cluster: Cluster, message: Results) -> None:
    record = message.record = new_record(state)
    state.effects.append(KeepResults(record, cluster.id, message))
    if cluster.client.away_since is None:
        hold(cluster, message)
        state.tell(cluster, message)
        return
    cluster.untold.append(record)
    if cluster.unheard_bytes < MEMORY_MAX:
        hold(cluster, message)
    else:
        cluster.stored[record] = len(message.results)


def hold(cluster: Cluster, message: Results) -> None:
    """Have results in memory."""
    cluster.unheard[message.record] = message
    cluster.unheard_bytes += _size_of(message.results)


def recall(cluster: Cluster, message: Results) -> None:
    """Take results that were kept by the broker before."""
    if cluster.unheard_bytes < MEMORY_MAX:
        hold(cluster, message)
    else:
        cluster.stored[message.record] = len(message.results)


def _size_of(results: list[JobResult]) -> int:
    size = RESULT_BYTES * len(results)
    for result in results:
        size += len(result.payload)
        if result.parts:
            size += sum([part.size for part in result.parts])
    return size


def count(cluster: Cluster) -> int:
    """Say how many results the client has not heard."""
    in_memory = sum(len(message.results) for message in cluster.unheard.values())
    return in_memory + sum(cluster.stored.values())


# -- the client is back ---------------------------------------------------------------------


def tell_untold(state: State, cluster: Cluster) -> None:
    """The client can be reached again, and nothing was lost: tell it what has ended meanwhile."""
    untold, cluster.untold = cluster.untold, []
    _tell(state, cluster, untold)


def send_again(state: State, cluster: Cluster) -> None:
    """Tell a client in a new session, or a new client, all that was not heard."""
    cluster.untold = []
    cluster.unread.clear()
    _tell(state, cluster, sorted([*cluster.unheard, *cluster.stored]))


def _tell(state: State, cluster: Cluster, records: list[int]) -> None:
    for record in records:
        message = cluster.unheard.get(record)
        if message is not None:
            message.cluster = cluster.number
            state.tell(cluster, message)
        elif record in cluster.stored:
            cluster.unread.append(record)
    if cluster.unread:
        state.unread[cluster] = None


def read_some(state: State) -> None:
    """Have results read that clients are to be told; more at the next flush."""
    clusters, state.unread = state.unread, {}
    for cluster in clusters:
        if cluster.client.away_since is not None:
            continue  # told when it is back
        for _ in range(min(READS_MAX, len(cluster.unread))):
            state.effects.append(LoadResults(cluster.unread.popleft(), cluster.id))


def results_loaded(state: State, cluster: Cluster, record: int, message: Results | None) -> None:
    """Tell a client what was read for it."""
    if cluster.unread:
        state.unread[cluster] = None
    if record not in cluster.stored or message is None:
        return  # the client has heard it meanwhile
    if cluster.client.away_since is not None:
        cluster.untold.append(record)
        return
    message.record, message.cluster = record, cluster.number
    state.tell(cluster, message)


def _on_results_heard(state: State, peer: str, message: ResultsHeard, now: float) -> None:
    cluster = state.cluster(peer, message.cluster)
    if cluster is None:
        return
    heard: list[int] = []
    for record in message.records:
        results = cluster.unheard.pop(record, None)
        if results is not None:
            cluster.unheard_bytes -= _size_of(results.results)
        elif cluster.stored.pop(record, None) is None:
            continue
        heard.append(record)
    if heard:
        state.effects.append(DropResults(heard))


HANDLERS: dict[type[Any], Callable[..., None]] = {
    ResultsHeard: _on_results_heard,
}
