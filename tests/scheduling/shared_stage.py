"""A scheduler that several clients share, and its journal; it may be ended and started again."""

from __future__ import annotations

from dispy.broker.core import Scheduler
from dispy.broker.effects import (
    DropCluster,
    DropResults,
    Effect,
    Forget,
    KeepCluster,
    KeepResults,
    Load,
    LoadResults,
)
from dispy.broker.settings import Settings
from dispy.broker.state import Client, Cluster
from dispy.protocol.messages import (
    FINISHED,
    Attach,
    Body,
    CloseCluster,
    ComputationSpec,
    Done,
    Identity,
    JobResult,
    JobSpec,
    NodeSpec,
    OpenCluster,
    Released,
    Submit,
)

from .keptstore import KeptStore
from .stage import LAYER, Stage

WALL_S = 1_000_000.0  # seconds since the epoch when the clock of the scheduler is at 0


class SharedStage(Stage):
    """Clients come by `client`, and each cluster is named by its client and its number there."""

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings(durable=True, shared=True)
        self.store = KeptStore()
        self.scheduler = self.new_scheduler()
        self.now = 0.0
        self.sent: list[tuple[str, Body]] = []
        self.dialled: list[str] = []
        self.undialled: list[str] = []
        self.dismissed: list[str] = []
        self.forgotten: list[str] = []
        self.kept: list[Effect] = []  # what has gone to the journal
        self.openings: dict[tuple[str, int], OpenCluster] = {}

    def new_scheduler(self) -> Scheduler:
        """Start a broker."""
        return Scheduler(0, self.settings, WALL_S)

    def carry_out(self, effects: list[Effect]) -> None:
        """Keep what is to be kept, and note the rest."""
        self.store.apply(effects)
        super().carry_out(effects)
        self.forgotten += [effect.peer for effect in effects if isinstance(effect, Forget)]
        self.kept += effects
        for effect in effects:
            if isinstance(effect, Load):
                self.scheduler.loaded(effect.batch, self.store.read_batch(effect.batch))
            elif isinstance(effect, LoadResults):
                record, cluster = effect
                self.scheduler.results_loaded(cluster, record, self.store.read_results(record))

    def restart(self) -> None:
        """End the broker without a word, and start it again from what was kept."""
        self.sent.clear()
        self.scheduler = self.new_scheduler()
        self.scheduler.restore(self.store.load(), self.now)
        self.flush()
        self.flush()  # with what was read

    # -- clients ---------------------------------------------------------------------------

    def client(self, name: str, user: str = "ann@here") -> None:
        """Have a client begin a session."""
        who = Identity("client", name, f"host-of-{name}", "0", "3", "Linux", user=user)
        self.scheduler.joined(name, who, [], "", self.now)
        self.flush()

    def go_away(self, name: str) -> None:
        """Have a client's connection break."""
        self.scheduler.away(name, "closed", False, self.now)
        self.flush()

    def come_back(self, name: str) -> None:
        """Have a client go on with its session."""
        self.scheduler.back(name)
        self.flush()

    def leave(self, name: str) -> None:
        """Have a client say goodbye."""
        self.scheduler.left(name, "it ended")
        self.flush()

    # -- clusters --------------------------------------------------------------------------

    def open(self, client: str, number: int = 1, **fields: object) -> None:
        """Have a client open a cluster, or open it again."""
        opening = self.openings.get((client, number))
        if opening is None:
            spec = ComputationSpec(f"c{number}", [LAYER], pulse_interval=1.0)
            opening = OpenCluster(number, spec, [NodeSpec("*")])
            for name, value in fields.items():
                setattr(opening, name, value)
            self.openings[client, number] = opening
        self.tell(client, opening)

    def cluster(self, client: str, number: int = 1) -> Cluster:
        """Return a cluster of a client."""
        return self.of(client).clusters[number]

    def of(self, client: str) -> Client:
        """Return a client."""
        return self.scheduler.clients[client]

    def give(self, client: str, *seqs: int, number: int = 1) -> None:
        """Have a client submit jobs."""
        self.tell(client, Submit(number, [JobSpec(seq, 0, b"x") for seq in seqs]))

    def attach(self, client: str, cluster: int = 1, **fields: object) -> None:
        """Have a client take a cluster over."""
        message = Attach(cluster)
        for name, value in fields.items():
            setattr(message, name, value)
        self.tell(client, message)

    def close(self, client: str, number: int = 1) -> None:
        """Have a client close a cluster, and its nodes clean up."""
        computation = self.cluster(client, number).id
        self.tell(client, CloseCluster(number))
        self.release(computation)

    def release(self, computation: int) -> None:
        """Have all nodes say that nothing is left of a cluster."""
        for name in list(self.scheduler.nodes):
            self.tell(name, Released(computation))

    def finish(self, node: str, computation: int, *seqs: int) -> None:
        """Have jobs finish."""
        ends = [JobResult(seq, 1, FINISHED, 1.0, 2.0, b"r") for seq in seqs]
        self.tell(node, Done(computation, ends))

    def said(self, kind: type[Body], client: str) -> list[Body]:
        """Take out what a client was told of a kind."""
        return [message for peer, message in self.take(kind) if peer == client]

    # -- the journal -----------------------------------------------------------------------

    def dropped(self) -> set[int]:
        """Return the clusters that were removed from the journal."""
        return {effect.id for effect in self.kept if isinstance(effect, DropCluster)}

    def last_kept(self, computation: int) -> KeepCluster:
        """Return what was kept of a cluster last, as it is now."""
        return [
            effect
            for effect in self.kept
            if isinstance(effect, KeepCluster) and effect.id == computation
        ][-1]

    def kept_results(self) -> set[int]:
        """Return the records of results that are in the journal."""
        records = {effect.id for effect in self.kept if isinstance(effect, KeepResults)}
        for effect in self.kept:
            if isinstance(effect, DropResults):
                records -= set(effect.ids)
        return records
