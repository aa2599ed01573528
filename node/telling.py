"""What the broker is told, and when: results of short jobs travel together.

Pure, like all that decides here.
"""

from __future__ import annotations

from dispy.protocol.messages import Body, Done

from .effects import Send
from .state import NEVER, Node

HOLD_S = 0.010  # how long a result may wait for others while there is more to do


def send(node: Node, message: Body) -> None:
    """Tell the broker; nobody, when there is none."""
    if node.broker:
        node.effects.append(Send(node.broker, message))


def send_results(node: Node) -> None:
    """Tell all results that are here."""
    for computation, results in node.results.items():
        send(node, Done(computation.id, results))
    if node.broker:
        node.results = {}
        node.held_since = None


def send_due_results(node: Node, now: float) -> None:
    """Tell results, unless they may wait for others."""
    if node.results and now >= _hold_until(node, now):
        send_results(node)


def _hold_until(node: Node, now: float) -> float:
    """Results of short jobs wait a moment for others, unless CPUs could run out of work."""
    if node.held_since is None:
        node.held_since = now
    if any([len(computation.queue) < node.cpus for computation in node.results]):
        return now
    until = node.held_since + HOLD_S
    node.wake_at(until if node.broker else NEVER)
    return until
