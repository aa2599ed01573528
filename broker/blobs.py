"""Contents of files on their way from clients to nodes, piece by piece.

Nodes ask; the broker holds their requests back so that little is on its way at a time, whatever
the number of nodes. A piece counts from the request to a client until its node says that it has
had it. Nodes take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import BlobPiece, BlobPieces, BlobRange, NeedBlobs

from .state import Allocation, Client, Node, Stage, State

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
    if len(node.held) + len(message.ranges) > HELD_MAX:
        raise ProtocolError("a node asks for too many pieces of files at once")
    had_none = not node.held
    for piece in message.ranges:
        if (piece.digest, piece.offset) not in allocation.asked:
            node.held[allocation, piece.digest, piece.offset] = piece
    if node.held and had_none:
        state.fetchers.append(node)


def _note_had(state: State, node: Node, had: int) -> None:
    arrived = min(max(0, had - node.had), node.underway)
    node.had = had
    node.underway -= arrived
    state.underway -= arrived


def ask_clients(state: State) -> None:
    """Pass requests on as far as there is room, one of each node in turn."""
    if state.now >= deadline(state):
        _count_no_more(state)
    asked: dict[Allocation, list[BlobRange]] = {}
    while state.fetchers and state.underway < UNDERWAY_MAX:
        node = state.fetchers.popleft()
        key = next(iter(node.held))
        allocation, piece = key[0], node.held.pop(key)
        if node.held:
            state.fetchers.append(node)
        allocation.asked[piece.digest, piece.offset] = piece
        state.underway += 1
        asked.setdefault(allocation, []).append(piece)
    for allocation, ranges in asked.items():
        _ask(state, allocation, ranges)


def deadline(state: State) -> float:
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
    for cluster in client.clusters.values():
        for allocation in cluster.allocations.values():
            if allocation.asked:
                _ask(state, allocation, list(allocation.asked.values()))


def _on_blob_pieces(state: State, peer: str, message: BlobPieces, now: float) -> None:
    """Pass on what the node still waits for; it has had all else, or is gone."""
    cluster = state.cluster(peer, message.cluster)
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


HANDLERS: dict[type[Any], Callable[..., None]] = {
    NeedBlobs: _on_need_blobs,
    BlobPieces: _on_blob_pieces,
}
