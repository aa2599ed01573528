"""Contents of files on their way from clients to nodes, piece by piece.

Nodes ask; the broker holds their requests back so that little is on its way at a time, whatever
the number of nodes. A private broker passes requests on to the client: there, a piece counts from
that moment until its node says that it has had it. A shared broker gets each file once and serves
nodes from its own copy, see `warehouse`. Nodes take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

from dispy.protocol.errors import ProtocolError
from dispy.protocol.fetching import Fetching
from dispy.protocol.messages import (
    Allocate,
    BlobPiece,
    BlobPieces,
    BlobRange,
    FileSpec,
    JobSpec,
    NeedBlobs,
    NodeRequest,
    OpenCluster,
    SendFile,
    Submit,
)

from .effects import ReadPiece
from .state import Allocation, Client, Cluster, Node, Stage, State
from .warehouse import Request, Warehouse, files_of

UNDERWAY_MAX = 32  # pieces of 1 MiB that may be on their way, in all
LATE_S = 20.0  # a node that hasn't said for so long that it has had its pieces holds nobody up
USING = (Stage.PREPARING, Stage.READY, Stage.CLOSING)  # stages in which a node needs files
HELD_MAX = 1000  # requests of one node that are held back; more than a node may have out


def _on_need_blobs(state: State, peer: str, message: NeedBlobs, now: float) -> None:
    """A node asks for pieces, and says how many it has had."""
    node = state.node(peer)
    _note_had(state, node, message.done)
    allocation = node.allocations.get(message.cluster)
    if allocation is None or allocation.stage not in USING:
        return  # released meanwhile
    waiting = len(node.held) + len(allocation.asked)
    if waiting + len(message.ranges) > HELD_MAX:
        raise ProtocolError("a node asks for too many pieces of files at once")
    for piece in message.ranges:
        if (piece.digest, piece.offset) not in allocation.asked:
            _take(state, allocation, piece)


def _take(state: State, allocation: Allocation, piece: BlobRange) -> None:
    """Have a piece go to a node in its turn, when the broker has it or can pass it on."""
    if state.warehouse is None:
        _hold(state, allocation, piece)
        return
    request = state.warehouse.ask(allocation, piece)
    if request is not None:
        _go_on(state, request)


def _go_on(state: State, request: Request) -> None:
    """A request needn't wait for the broker's copy any more."""
    allocation, piece, error = request
    if not error:
        _hold(state, allocation, piece)
        return
    cluster, node = allocation.cluster, allocation.node
    answer = BlobPiece(piece.digest, piece.offset, b"", error=error)
    state.order(allocation, BlobPieces(cluster.id, node.id, [answer]))
    _note_sent(state, node)


def _hold(state: State, allocation: Allocation, piece: BlobRange) -> None:
    node = allocation.node
    if not node.held:
        state.fetchers.append(node)
    node.held[allocation, piece.digest, piece.offset] = piece


def _note_sent(state: State, node: Node) -> None:
    node.underway += 1
    node.sent_at = state.now
    state.underway += 1


def _note_had(state: State, node: Node, had: int) -> None:
    arrived = min(max(0, had - node.had), node.underway)
    node.had = had
    node.underway -= arrived
    state.underway -= arrived


def move(state: State) -> None:
    """Let pieces go on as far as there is room; called at each flush."""
    if state.warehouse is not None:
        _stock_up(state)
    if not state.fetchers:
        return
    if state.now >= _late_at(state):
        _count_no_more(state)
    asked: dict[Allocation, list[BlobRange]] = {}
    while state.fetchers and state.underway < UNDERWAY_MAX:
        allocation, piece = _next_request(state)
        if state.warehouse is None:
            allocation.asked[piece.digest, piece.offset] = piece
            state.underway += 1
            asked.setdefault(allocation, []).append(piece)
        else:
            node = allocation.node
            state.effects.append(ReadPiece(node.peer, allocation.cluster.id, node.id, piece))
            _note_sent(state, node)
    for allocation, ranges in asked.items():
        _ask(state, allocation, ranges)


def _next_request(state: State) -> tuple[Allocation, BlobRange]:
    """Take out one request of the node whose turn it is."""
    node = state.fetchers.popleft()
    key = next(iter(node.held))
    piece = node.held.pop(key)
    if node.held:
        state.fetchers.append(node)
    return key[0], piece


def _stock_up(state: State) -> None:
    """Go on with the broker's own copies."""
    warehouse = state.warehouse
    assert warehouse is not None
    if state.now >= warehouse.look_at:
        warehouse.look(state.clusters, state.now)
    for request in warehouse.settle():
        _go_on(state, request)
    for number, ranges in warehouse.requests(state.now):
        cluster = state.clusters[number]
        state.tell(cluster, NeedBlobs(cluster.number, 0, ranges))
    state.effects += warehouse.take_effects()


def deadline(state: State) -> float:
    """When `move` next has something to do by itself."""
    warehouse = state.warehouse
    if warehouse is None:
        return _late_at(state)
    if warehouse.stirred:
        return state.now
    return min(_late_at(state), warehouse.fetching.deadline())


def _late_at(state: State) -> float:
    """When there will be room again at the latest, if nodes wait for it."""
    if not state.fetchers or state.underway < UNDERWAY_MAX:
        return float("inf")
    sent = [node.sent_at for node in state.nodes.values() if node.underway]
    return min(sent, default=float("inf")) + LATE_S


def _count_no_more(state: State) -> None:
    """Give back the room of nodes that don't say what they have had."""
    for node in state.nodes.values():
        if node.underway and state.now >= node.sent_at + LATE_S:
            state.underway -= node.underway
            node.underway = 0


def _ask(state: State, allocation: Allocation, ranges: list[BlobRange]) -> None:
    cluster = allocation.cluster
    state.tell(cluster, NeedBlobs(cluster.number, allocation.node.id, ranges))


def ask_again(state: State, client: Client) -> None:
    """Ask a client once more whose answers may have been lost with its session."""
    if state.warehouse is not None:
        state.warehouse.fetching.ask_again({each.id for each in client.clusters.values()})
        ask_soon(state)
        return
    for cluster in client.clusters.values():
        for allocation in cluster.allocations.values():
            if allocation.asked:
                _ask(state, allocation, list(allocation.asked.values()))


def ask_soon(state: State) -> None:
    """A client is there again, that could not be asked for files meanwhile."""
    if state.warehouse is not None:
        state.warehouse.look_at = state.now


def _on_blob_pieces(state: State, peer: str, message: BlobPieces, now: float) -> None:
    """Pass on what the node still waits for; it has had all else, or is gone."""
    cluster = state.cluster(peer, message.cluster)
    if state.warehouse is not None:
        if cluster is not None:
            state.warehouse.receive(cluster.id, message.pieces, now)
        return
    allocation = None if cluster is None else cluster.allocations.get(message.node)
    if cluster is None or allocation is None:
        return
    pieces = [piece for piece in message.pieces if _is_awaited(allocation, piece)]
    if pieces:
        allocation.node.underway += len(pieces)
        allocation.node.sent_at = now
        state.order(allocation, BlobPieces(cluster.id, message.node, pieces))


def _is_awaited(allocation: Allocation, piece: BlobPiece) -> bool:
    return allocation.asked.pop((piece.digest, piece.offset), None) is not None


def forget_blobs(state: State, allocation: Allocation) -> None:
    """An allocation needs no more pieces: those that its client was asked for may never come."""
    if state.warehouse is not None:
        state.warehouse.forget(allocation)
    else:
        state.underway -= len(allocation.asked)
        allocation.asked.clear()
    node = allocation.node
    if node.held:
        for key in [key for key in node.held if key[0] is allocation]:
            del node.held[key]
        if not node.held:
            state.fetchers.remove(node)


def forget_pieces(state: State, node: Node) -> None:
    """A node is lost, or begins a new session: it asks again for all that it still needs."""
    for allocation in node.allocations.values():
        forget_blobs(state, allocation)
    state.underway -= node.underway
    node.underway = 0
    node.had = 0


# -- the broker's own copies --------------------------------------------------------------------


def new_warehouse(state: State) -> Warehouse:
    """Make the warehouse of a shared broker; with a journal its clients may end early."""
    settings = state.settings
    return Warehouse(settings.durable, partial(peer_of, state), settings.max_file_bytes)


def fetching(state: State) -> Fetching:
    """Return what knows of the store; only a shared broker has it."""
    assert state.warehouse is not None
    return state.warehouse.fetching


def take_stock(state: State, sizes: Mapping[bytes, int], idle_bytes: int) -> None:
    """At the start: see what is in the store, of which ``idle_bytes`` may be of no use now."""
    assert state.warehouse is not None
    state.warehouse.take_stock(sizes, idle_bytes)


def peer_of(state: State, number: int) -> Hashable:
    """Return the client that can be asked for files of a cluster; None: it isn't there now."""
    cluster = state.clusters.get(number)
    if cluster is None or cluster.client.away_since is not None:
        return None
    return cluster.client.peer


def need_all(state: State) -> None:
    """Have all files of all clusters: some have come otherwise than by a message just now."""
    if state.warehouse is None:
        return
    for cluster in state.clusters.values():
        if not cluster.closing:
            state.warehouse.need(cluster, files_of(cluster))


def need_for_jobs(state: State, cluster: Cluster, jobs: list[JobSpec]) -> None:
    """Have the files of jobs that have come, or are loaded."""
    if state.warehouse is not None:
        files = [file for job in jobs if job.options is not None for file in job.options.files]
        if files:
            state.warehouse.need(cluster, files)


def note_files(state: State, peer: str, message: Any) -> None:
    """A message has been dealt with that may have brought files."""
    cluster = state.cluster(peer, message.cluster)
    if state.warehouse is None or cluster is None or cluster.closing:
        return
    if isinstance(message, Submit):
        need_for_jobs(state, cluster, message.jobs)
    elif isinstance(message, OpenCluster):  # it may be a known one
        state.warehouse.need(cluster, files_of(cluster), lasting=not cluster.jobs)
    else:
        state.warehouse.need(cluster, _files_in(message))


def _files_in(message: NodeRequest | Allocate | SendFile) -> list[FileSpec]:
    if isinstance(message, SendFile):
        return [message.file]
    if isinstance(message, Allocate):
        return message.files
    return [file for spec in message.nodes for file in spec.files]


BRINGING: tuple[type[Any], ...] = (OpenCluster, Submit, NodeRequest, Allocate, SendFile)


def unreadable(state: State, errand: ReadPiece) -> None:
    """What the broker had can't be read: get it anew, if its client is there."""
    digest = errand.piece.digest
    fetching(state).lost(digest)
    node = state.nodes.get(errand.peer)
    allocation = None if node is None else node.allocations.get(errand.computation)
    if node is None or allocation is None or node.id != errand.node:
        return
    if node.underway:
        node.underway -= 1
        state.underway -= 1
    if allocation.stage in USING and (digest, errand.piece.offset) not in allocation.asked:
        _take(state, allocation, errand.piece)


HANDLERS: dict[type[Any], Callable[..., None]] = {
    NeedBlobs: _on_need_blobs,
    BlobPieces: _on_blob_pieces,
}
