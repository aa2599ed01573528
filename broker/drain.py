"""Nodes that get no jobs for a while: drained by people, set aside, or out of service.

Jobs that have begun there go on, and what has not is taken back. The node keeps what it has set
up, so that it can go on at once when it is used again.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dispy.protocol.messages import Service

from .mishaps import drop, forgive, half_forgive, keep
from .setups import allocate, open_up, start_over, trouble, vacate
from .state import PENDING, Node, Past, Stage, State

REASON_CHARS = 1000  # of what people say
NO_REASON = "by an operator"


def drain(state: State, node: Node, reason: str) -> None:
    """An operator wants the node to get no jobs."""
    node.past.drained = reason[:REASON_CHARS] or NO_REASON
    keep(state, node)
    bar(state, node)


def resume(state: State, place: str, past: Past) -> None:
    """An operator wants the node that is at a place, or was, to be used again."""
    past.drained = past.set_aside = ""
    past.until = float("inf")
    state.aside.pop(place, None)
    forgive(past)
    _use_again(state, place, past)


def _use_again(state: State, place: str, past: Past) -> None:
    node = node_of(state, past)
    if node is None:  # it isn't registered: nothing more is to be remembered of it
        drop(state, past)
        if not past.mishaps and not past.unfit:
            del state.pasts[place]
        return
    keep(state, node)
    unbar(state, node)


def node_of(state: State, past: Past) -> Node | None:
    """Return the node whose past it is, if it is registered."""
    return next((node for node in state.nodes.values() if node.past is past), None)


def bar(state: State, node: Node) -> None:
    """Give a node no jobs from now on, take back what it hasn't begun, and tell the clients."""
    for allocation in list(node.allocations.values()):
        allocation.reopen()
        if allocation.stage in PENDING:
            vacate(state, allocation, False)
    say_barred(state, node)


def say_barred(state: State, node: Node) -> None:
    """Tell the clients that would use a node why they can't."""
    for allocation in node.allocations.values():
        if allocation.stage in PENDING:
            trouble(state, allocation.cluster, node.address or node.identity.name, node.barred)


def unbar(state: State, node: Node) -> None:
    """Use a node again, unless it is barred for another reason as well."""
    if node.barred:
        say_barred(state, node)
        return
    for allocation in list(node.allocations.values()):
        allocation.cluster.troubles.pop(node.address or node.identity.name, None)
        allocation.reopen()
        if allocation.stage is Stage.FAILED:
            start_over(state, allocation)
        elif allocation.is_open:
            open_up(state, allocation)
    for cluster in list(state.clusters.values()):
        allocate(state, cluster, node)


# -- what happens by itself -----------------------------------------------------------------


def bar_anew(state: State) -> None:
    """Carry out what `mishaps` has decided since the last flush."""
    for node in list(state.barred_anew):
        keep(state, node)
        bar(state, node)
    state.barred_anew.clear()


def bring_back(state: State, now: float) -> None:
    """Use nodes again whose time aside is over."""
    for place, past in [each for each in state.aside.items() if now >= each[1].until]:
        del state.aside[place]
        past.set_aside = ""
        past.until = float("inf")
        half_forgive(past, now)
        _use_again(state, place, past)


def deadline(state: State) -> float:
    """When the next node is to be used again."""
    return min([past.until for past in state.aside.values()], default=float("inf"))


def _on_service(state: State, peer: str, message: Service, now: float) -> None:
    """A node takes jobs, or doesn't, by its own word."""
    node = state.node(peer)
    was = node.barred
    node.out_of_service = "" if message.open else message.reason[:REASON_CHARS] or "out of service"
    if node.out_of_service:
        bar(state, node)
    elif was:
        unbar(state, node)


HANDLERS: dict[type[Any], Callable[..., None]] = {
    Service: _on_service,
}
