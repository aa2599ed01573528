"""The broker's state machine: which node runs which job, and what becomes of it.

It does no I/O and reads no clock. Events come in through the public methods; `flush` then
places what can be placed and returns all effects since the last call, one message for each
peer and subject however many jobs it concerns. Each subject has a file with functions over the
state, and with the handlers of its messages:

`clients`: who they are, and their clusters; `attaching`: how another one takes these over;
`exclusive`: which of these wait for others; `submissions`: their jobs.
`nodes`: who they are, and what they hold. `mishaps`, `drain`: which get no jobs for a while.
`setups`, `closing`: what a node has to do with a cluster, from first to last. `puts`: files that
it gets meanwhile. `requests`: what users ask about nodes, `choices`: what is kept of that;
`explain`: what they ask about jobs; `operation`: what people ask of the broker as a whole.
`intake`, `backlog`: how jobs come in, and those that wait on disk. `batches`, `restore`: what is
kept of them there, and how a broker goes on from it.
`jobs`: where a job is. `turns`, `placement`: which node gets it. `results`: how it ends,
and `unheard` that its client learns of it.
`records`, `blobs`: what passes through between clients and nodes. `checks`: what always holds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar

from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import Body, Identity, JobSpec, JobsRequeued, Results, Run

from . import (
    attaching,
    batches,
    blobs,
    clients,
    closing,
    drain,
    exclusive,
    hope,
    intake,
    matching,
    nodes,
    operation,
    puts,
    records,
    requests,
    restore,
    results,
    setups,
    submissions,
    turns,
    unheard,
)
from .checks import check
from .durable import Kept
from .effects import Effect, Forget, ReadPiece
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
        **attaching.HANDLERS,
        **submissions.HANDLERS,
        **nodes.HANDLERS,
        **setups.HANDLERS,
        **puts.HANDLERS,
        **closing.HANDLERS,
        **requests.HANDLERS,
        **drain.HANDLERS,
        **operation.HANDLERS,
        **results.HANDLERS,
        **unheard.HANDLERS,
        **records.HANDLERS,
        **blobs.HANDLERS,
    }

    def __init__(
        self, first_id: int = 0, settings: Settings | None = None, wall_offset_s: float = 0.0
    ) -> None:
        self.state = state = State(first_id, settings or Settings(), wall_offset_s)
        if state.settings.shared:
            state.warehouse = blobs.new_warehouse(state)

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
            if state.warehouse is not None and isinstance(message, blobs.BRINGING):
                blobs.note_files(state, peer, message)

    def joined(
        self,
        peer: str,
        identity: Identity,
        undelivered: list[Body],
        address: str,
        now: float,
        via: str = "",
        reached: str = "",
        relay: str = "",
    ) -> None:
        """A peer has registered, with nothing left of an earlier session.

        ``address``: what was dialled; ``via``: the name of the relay that it is behind;
        ``reached``: where it is, if what was dialled stands for several addresses; ``relay``: what
        was dialled to get to its relay.
        """
        self.state.now = now
        if identity.role == "client":
            clients.client_joined(self.state, peer, identity, undelivered)
        elif identity.role == "node":
            nodes.node_joined(self.state, peer, identity, undelivered, address, via, reached)
            self.nodes[peer].relay = relay
        elif identity.role == "relay" and address:
            setups.found_relay(self.state, address)

    def away(self, peer: str, reason: str, gone: bool, now: float) -> None:
        """A peer can't be reached: its lease runs, unless it is certainly ``gone``."""
        node = self.nodes.get(peer)
        client = self.clients.get(peer)
        if node is not None and gone:
            nodes.lose_node(self.state, node, "its process is gone")
        elif node is not None:
            nodes.node_away(self.state, node, now)
        elif client is not None:
            clients.client_away(self.state, client, now)

    def back(self, peer: str) -> None:
        """A peer that was away can be reached again, and nothing was lost."""
        node = self.nodes.get(peer)
        if node is not None:
            nodes.node_back(self.state, node)
        client = self.clients.get(peer)
        if client is not None:
            clients.client_back(self.state, client)

    def left(self, peer: str, reason: str) -> None:
        """A peer has ended its session for good."""
        node = self.nodes.get(peer)
        if node is not None:
            nodes.lose_node(self.state, node, reason or "it was stopped")
        clients.client_left(self.state, peer)

    def unreachable(self, address: str, reason: str) -> None:
        """An address that is dialled leads to no node at present."""
        if address in self.state.settings.nodes:
            self.state.unreached[address] = reason
        for cluster in self.clusters.values():
            if address in cluster.addresses:
                setups.miss(self.state, cluster, address, reason)

    def wants_any(self) -> bool:
        """Whether some cluster uses whatever nodes there are, if they match."""
        return any(
            not cluster.closing and matching.is_open(cluster.specs)
            for cluster in self.clusters.values()
        )

    def let_go(self, peers: Iterable[str]) -> None:
        """Let these nodes work for others, as far as no cluster has them or asks for them."""
        closing.let_go(self.state, peers)

    def set_trouble(self, trouble: str) -> None:
        """Take no new jobs and clusters, for a reason; take them again when it is empty."""
        clients.set_trouble(self.state, trouble)
        blobs.need_all(self.state)

    def tick(self, now: float) -> None:
        """Give up nodes and clients whose lease has ended. What else is due, `flush` does."""
        state = self.state
        state.now = now
        for node in [node for node in state.away if now >= node.lost_at] if state.away else ():
            if node not in state.away:
                continue  # let go with the one before, as the last of a cluster
            nodes.lose_node(state, node, "it could not be reached for the time of its lease")
            state.effects.append(Forget(node.peer))
        if now >= state.clients_due:
            clients.look_after(state, now)
        if state.aside:
            drain.bring_back(state, now)
        if state.hopeful:
            hope.look_again(state)

    def paused(self, seconds: float, now: float) -> None:
        """Nobody could be heard for so long: whoever was away has as much more time."""
        for node in self.state.away:
            node.lost_at += seconds
        clients.give_time(self.state, seconds, now)

    def deadline(self) -> float:
        """When `tick` and `flush` next have something to do by themselves."""
        ends = [blobs.deadline(self.state), drain.deadline(self.state)]
        ends += [node.lost_at for node in self.state.away]
        ends += [hope.deadline(self.state), self.state.clients_due]
        if self.state.pulsed:
            ends.append(self.state.pulses_at)
        if self.state.backlogged or self.state.unread:  # something was loaded
            ends.append(self.state.now)
        return min(ends)

    def restore(self, kept: Kept, now: float) -> None:
        """Go on from what was kept: once, before anything else happens, with a journal.

        The `Load` effects of the flush that follows must be answered before anything is received.
        """
        self.state.now = now
        restore.restore(self.state, kept, now)
        blobs.need_all(self.state)

    def loaded(self, batch: int, specs: list[JobSpec] | None) -> None:
        """Take the jobs of a batch that `Load` has asked for; None: it can't be read."""
        intake.loaded(self.state, batch, specs)

    def results_loaded(self, cluster: int, record: int, message: Results | None) -> None:
        """Take results that `LoadResults` has asked for; None: they aren't kept any more."""
        known = self.state.clusters.get(cluster)
        if known is not None:
            unheard.results_loaded(self.state, known, record, message)

    def flush(self, now: float) -> list[Effect]:
        """Place jobs, and return everything to be done since the last call."""
        state = self.state
        state.now = now
        if state.barred_anew:
            drain.bar_anew(state)
        if state.pulsed:
            nodes.say_pulses(state)
        if state.exclusives:
            exclusive.look(state)
        turns.place(state)
        if state.idle_nodes:
            turns.take_back(state)
        if state.fetchers or state.warehouse is not None:
            blobs.move(state)
        self._say_all()
        effects, state.effects = state.effects, []
        return effects

    def _say_all(self) -> None:
        """Turn what was collected into messages."""
        state = self.state
        durable = state.settings.durable
        for allocation, jobs in state.runs.items():
            if durable:
                batches.note_placed(state, allocation, jobs)
            state.order(allocation, Run(allocation.cluster.id, jobs))
        state.runs = {}
        for cluster, seqs in state.requeued.items():
            state.tell(cluster, JobsRequeued(cluster.number, seqs))
        state.requeued = {}
        if state.results:
            unheard.say_results(state)
        for cluster in state.uncredited if not state.trouble else ():
            turns.grant(state, cluster)
        state.uncredited = {}
        if durable:
            batches.say_progress(state)
            intake.load_ahead(state)
            unheard.read_some(state)

    # -- what `bloberrands` has done -----------------------------------------------------------

    def blobs_present(self, sizes: Mapping[bytes, int], idle_bytes: int) -> None:
        """At the start, before `restore`: what the store has, and how much of it may lie unused."""
        blobs.take_stock(self.state, sizes, idle_bytes)

    def blob_kept(self, digest: bytes) -> None:
        """A blob is in the store, whole and verified."""
        blobs.fetching(self.state).kept(digest)

    def blob_spoiled(self, digest: bytes) -> None:
        """What was to be a blob isn't what its name says; nothing is left of it."""
        blobs.fetching(self.state).spoiled(digest)

    def blob_failed(self, digest: bytes, reason: str) -> None:
        """A blob can't be written, for ``reason``; nothing is left of it."""
        blobs.fetching(self.state).failed(digest, reason)

    def blob_unreadable(self, errand: ReadPiece) -> None:
        """A piece couldn't be read: nothing was sent to the node."""
        blobs.unreadable(self.state, errand)

    def check(self) -> None:
        """Assert what must hold between any two events."""
        check(self.state)
