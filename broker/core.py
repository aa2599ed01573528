"""The broker's state machine: which node runs which job, and what becomes of it.

It does no I/O and reads no clock. Events come in through the public methods; `flush` then
places what can be placed and returns all effects since the last call, one message for each
peer and subject however many jobs it concerns. Each subject has a file with functions over the
state, and with the handlers of its messages:

`clients`: who they are, their clusters and jobs. `nodes`: who they are, and what they hold.
`setups`, `closing`: what a node has to do with a cluster, from first to last. `puts`: files that
it gets meanwhile. `requests`: what users ask about nodes, and `explain` about jobs.
`jobs`: where a job is. `turns`, `placement`: which node gets it. `results`: how it ends.
`records`, `blobs`: what passes through between clients and nodes. `checks`: what always holds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import Body, Identity, JobsRequeued, Results, Run

from . import blobs, clients, closing, nodes, puts, records, requests, results, setups, turns
from .checks import check
from .effects import Effect, Forget
from .settings import Settings
from .state import Client, Cluster, Node, State


class Scheduler:
    """Owns every job from its submission until its result is on the way to the client.

    ``first_id`` keeps the computations of different brokers at a node apart. ``wall_offset_s``
    turns the time that is passed in into seconds since the epoch. ``check`` asserts all
    invariants; tests call it after every event.
    """

    HANDLERS: ClassVar[dict[type[Any], Callable[..., None]]] = {
        **clients.HANDLERS,
        **nodes.HANDLERS,
        **setups.HANDLERS,
        **puts.HANDLERS,
        **closing.HANDLERS,
        **requests.HANDLERS,
        **results.HANDLERS,
        **records.HANDLERS,
        **blobs.HANDLERS,
    }

    def __init__(
        self, first_id: int = 0, settings: Settings | None = None, wall_offset_s: float = 0.0
    ) -> None:
        self.state = State(first_id, settings or Settings(), wall_offset_s)

    @property
    def clients(self) -> dict[str, Client]:
        """Registered clients, by peer."""
        return self.state.clients

    @property
    def nodes(self) -> dict[str, Node]:
        """Registered nodes, by peer."""
        return self.state.nodes

    @property
    def clusters(self) -> dict[int, Cluster]:
        """Clusters that aren't closed, by the broker's number."""
        return self.state.clusters

    @property
    def late_results(self) -> int:
        """How many results were dropped, since their attempts had been given up."""
        return self.state.late_results

    def receive(self, peer: str, message: Body, now: float) -> None:
        """Handle a message of a registered peer; `ProtocolError` if it makes no sense."""
        handler = self.HANDLERS.get(type(message))
        if handler is None:
            raise ProtocolError(f"a broker takes no {type(message).__name__}")
        state = self.state
        if peer in state.nodes or peer in state.clients:  # else it was let go meanwhile
            state.now = now
            handler(state, peer, message, now)

    def joined(
        self, peer: str, identity: Identity, undelivered: list[Body], address: str, now: float
    ) -> None:
        """A peer has registered, with nothing left of an earlier session."""
        self.state.now = now
        if identity.role == "client":
            clients.client_joined(self.state, peer, undelivered)
        elif identity.role == "node":
            nodes.node_joined(self.state, peer, identity, undelivered, address)

    def away(self, peer: str, reason: str, gone: bool, now: float) -> None:
        """A peer can't be reached: its lease runs, unless it is certainly ``gone``."""
        node = self.nodes.get(peer)
        client = self.clients.get(peer)
        if node is not None and gone:
            nodes.lose_node(self.state, node, "its process is gone")
        elif node is not None:
            nodes.node_away(self.state, node, now)
        elif client is not None:
            clients.client_away(client, now)

    def back(self, peer: str) -> None:
        """A peer that was away can be reached again, and nothing was lost."""
        node = self.nodes.get(peer)
        if node is not None:
            nodes.node_back(self.state, node)
        client = self.clients.get(peer)
        if client is not None:
            client.lost_at = float("inf")

    def left(self, peer: str, reason: str) -> None:
        """A peer has ended its session for good."""
        node = self.nodes.get(peer)
        if node is not None:
            nodes.lose_node(self.state, node, reason or "it was stopped")
        clients.client_left(self.state, peer)

    def unreachable(self, address: str, reason: str) -> None:
        """An address that some cluster asks for leads to no node at present."""
        for cluster in self.clusters.values():
            if address in cluster.addresses:
                setups.miss(self.state, cluster, address, reason)

    def tick(self, now: float) -> None:
        """Give up nodes and clients whose lease has ended. What else is due, `flush` does."""
        state = self.state
        state.now = now
        for node in [node for node in state.nodes.values() if now >= node.lost_at]:
            nodes.lose_node(state, node, "it could not be reached for the time of its lease")
            state.effects.append(Forget(node.peer))
        for client in [each for each in state.clients.values() if now >= each.lost_at]:
            clients.client_left(state, client.peer)
            state.effects.append(Forget(client.peer))

    def deadline(self) -> float:
        """When `tick` and `flush` next have something to do by themselves."""
        ends = [blobs.deadline(self.state)]
        ends += [node.lost_at for node in self.nodes.values() if not node.online]
        ends += [client.lost_at for client in self.clients.values()]
        return min(ends)

    def flush(self, now: float) -> list[Effect]:
        """Place jobs, and return everything to be done since the last call."""
        state = self.state
        state.now = now
        turns.place(state)
        if state.idle_nodes:
            turns.take_back(state)
        if state.fetchers:
            blobs.ask_clients(state)
        self._say_all()
        effects, state.effects = state.effects, []
        return effects

    def _say_all(self) -> None:
        """Turn what was collected into messages."""
        state = self.state
        for allocation, jobs in state.runs.items():
            state.order(allocation, Run(allocation.cluster.id, jobs))
        state.runs = {}
        for cluster, seqs in state.requeued.items():
            state.tell(cluster, JobsRequeued(cluster.number, seqs))
        state.requeued = {}
        for (cluster, node), ended in state.results.items():
            state.tell(cluster, Results(cluster.number, node, ended))
        state.results = {}
        for cluster in state.uncredited:
            turns.grant(state, cluster)
        state.uncredited = {}

    def check(self) -> None:
        """Assert what must hold between any two events."""
        check(self.state)
