"""Results on their way to their client. With a journal, they are kept until it has heard them.

They are in memory as well, up to a bound; what comes beyond that is only on disk, and read when
the client is to be told again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from dispy.protocol.messages import JobResult, Results, ResultsHeard
from dispy.protocol.wire import HEADER_BYTES

from .batches import new_record
from .durable import RESULTS_BYTES, bytes_of
from .effects import DropResults, KeepResults, LoadResults
from .state import Cluster, State

# Of a message that is kept: a link would cut a longer one in two, and when the first of these had
# been heard, the other would be forgotten.
HEADER_BYTES_MAX = HEADER_BYTES // 2
FIELDS_BYTES = 64  # of a result in a header, beside its payload
PART_BYTES = 8  # the size of a part, there
MEMORY_MAX = 64 << 20  # bytes of a cluster's results in memory
READS_MAX = 32  # messages of one cluster that are read for one flush


def say_results(state: State) -> None:
    """Tell clients how their jobs have ended."""
    durable = state.settings.durable
    for (cluster, node), ended in state.results.items():
        if durable and (not cluster.closing or cluster.meta.expired):
            for part in _parts(ended):
                _keep(state, cluster, Results(cluster.number, node, part))
        else:
            state.tell(cluster, Results(cluster.number, node, ended))
    state.results = {}


def _parts(ended: list[JobResult]) -> Iterator[list[JobResult]]:
    """Cut results into messages that no link will cut."""
    begin, size = 0, 0
    for at, result in enumerate(ended):
        size += len(result.payload) + FIELDS_BYTES + PART_BYTES * len(result.parts)
        if size > HEADER_BYTES_MAX and at > begin:
            yield ended[begin:at]
            begin, size = at, len(result.payload)
    yield ended[begin:]


def _keep(state: State, cluster: Cluster, message: Results) -> None:
    record = message.record = new_record(state)
    state.effects.append(KeepResults(record, cluster.id, message))
    hold(state, cluster, message)
    if cluster.client.away_since is None:
        _tell(state, cluster, [record])
    else:
        cluster.untold.append(record)


def hold(state: State, cluster: Cluster, message: Results) -> None:
    """Have results at hand, in memory if there is room."""
    if cluster.unheard_bytes < MEMORY_MAX and state.unheard_bytes < RESULTS_BYTES:
        cluster.unheard[message.record] = message
        _count(state, cluster, bytes_of(message.results))
    else:
        cluster.stored[message.record] = len(message.results)


def _count(state: State, cluster: Cluster, size: int) -> None:
    cluster.unheard_bytes += size
    state.unheard_bytes += size


def drop_all(state: State, cluster: Cluster) -> None:
    """Nobody will hear the results of a cluster that is forgotten."""
    state.unheard_bytes -= cluster.unheard_bytes
    cluster.unheard_bytes = 0
    cluster.unheard.clear()
    cluster.stored.clear()
    cluster.unread.clear()


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
    """Tell a client of results, behind all that is to be read for it: an end may be put right."""
    for record in records:
        message = cluster.unheard.get(record)
        if message is None or cluster.unread or cluster.reading:
            cluster.unread.append(record)
        else:
            message.cluster = cluster.number
            state.tell(cluster, message)
    if cluster.unread:
        state.unread[cluster] = None


def read_some(state: State) -> None:
    """Have results read that clients are to be told; more at the next flush."""
    clusters, state.unread = state.unread, {}
    for cluster in clusters:
        if cluster.client.away_since is None and not cluster.reading:
            _read_next(state, cluster)


def _read_next(state: State, cluster: Cluster) -> None:
    unread = cluster.unread
    while unread and cluster.reading < READS_MAX:
        record = unread[0]
        if record in cluster.stored:
            cluster.reading += 1
            state.effects.append(LoadResults(record, cluster.id))
        elif record in cluster.unheard:
            if cluster.reading:
                return  # it is told when the ones before have been
            message = cluster.unheard[record]
            message.cluster = cluster.number
            state.tell(cluster, message)
        unread.popleft()


def results_loaded(state: State, cluster: Cluster, record: int, message: Results | None) -> None:
    """Tell a client what was read for it."""
    cluster.reading -= 1
    if cluster.unread:
        state.unread[cluster] = None
    if record in cluster.stored and message is not None:
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
            _count(state, cluster, -bytes_of(results.results))
        elif cluster.stored.pop(record, None) is None:
            continue
        heard.append(record)
    if heard:
        state.effects.append(DropResults(heard))


HANDLERS: dict[type[Any], Callable[..., None]] = {
    ResultsHeard: _on_results_heard,
}
