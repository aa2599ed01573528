"""Files that users have put into the folder of a computation, node by node, while it runs.

They are sent again until the node has said that they are there; what can't be, is answered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dispy.protocol.messages import (
    Answer,
    FilePut,
    FileSpec,
    PutFile,
    SendFile,
)

from .state import PENDING, Allocation, Stage, State

PUTS_MAX = 1000  # files on their way to one node


def _on_send_file(state: State, peer: str, message: SendFile, now: float) -> None:
    cluster = state.cluster(peer, message.cluster)
    allocation = None if cluster is None else cluster.allocations.get(message.node)
    refusal = ""
    if allocation is None or allocation.stage not in PENDING:
        refusal = f"the cluster does not use node {message.node}"
    elif len(allocation.puts) >= PUTS_MAX:
        refusal = f"{PUTS_MAX} files are on their way to node {message.node} already"
    if refusal or allocation is None:
        state.send(peer, Answer(message.cluster, message.request, -1, refusal))
        return
    allocation.puts[message.request] = message.file
    if allocation.stage is Stage.READY:
        _put(state, allocation, message.request)


def _put(state: State, allocation: Allocation, request: int) -> None:
    file: FileSpec = allocation.puts[request]
    state.order(allocation, PutFile(allocation.cluster.id, request, file))


def put_again(state: State, allocation: Allocation) -> None:
    """Send what the node may have missed."""
    for request in allocation.puts:
        _put(state, allocation, request)


def _on_file_put(state: State, peer: str, message: FilePut, now: float) -> None:
    allocation = state.allocation(peer, message.computation)
    if allocation is None or allocation.puts.pop(message.request, None) is None:
        return  # it was answered when the node was closed, or is said twice
    cluster, code = allocation.cluster, -1 if message.error else 0
    state.tell(cluster, Answer(cluster.number, message.request, code, message.error))


def fail_puts(state: State, allocation: Allocation, reason: str) -> None:
    """Answer what can't be put any more."""
    puts, allocation.puts = allocation.puts, {}
    for request in puts:
        state.tell(allocation.cluster, Answer(allocation.cluster.number, request, -1, reason))


HANDLERS: dict[type[Any], Callable[..., None]] = {
    SendFile: _on_send_file,
    FilePut: _on_file_put,
}
