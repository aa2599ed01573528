"""A stage whose scheduler keeps all in a journal, and can be ended and started at any flush."""

from __future__ import annotations

from dispy.broker.core import Scheduler
from dispy.broker.effects import Effect, Load, LoadResults
from dispy.broker.settings import Settings
from dispy.protocol.messages import Accepted, NodeSpec, Results, ResultsHeard

from .keptstore import KeptStore
from .stage import CLIENT, Stage, identity

EPOCH_S = 1e9
FIRST_ID = 1 << 40


class DurableStage(Stage):
    """Everything that is kept goes through the encoding of the journal."""

    def __init__(
        self,
        reentrant: bool = False,
        nodes: tuple[NodeSpec, ...] = (NodeSpec("*"),),
        asks: bool = False,
        **settings: object,
    ) -> None:
        self.settings = Settings(durable=True, shared=False, **settings)  # type: ignore[arg-type]
        self.store = KeptStore()
        self.reads: list[int] = []  # batches that were read
        super().__init__(reentrant, nodes, asks)

    def new_scheduler(self) -> Scheduler:
        """Start a broker."""
        return Scheduler(FIRST_ID, self.settings, EPOCH_S)

    def carry_out(self, effects: list[Effect]) -> None:
        """Keep what is to be kept, and only then do the rest."""
        self.store.apply(effects)
        super().carry_out(effects)
        for effect in effects:
            if isinstance(effect, Load):
                self.reads.append(effect.batch)
                self.scheduler.loaded(effect.batch, self.store.read_batch(effect.batch))
                self.scheduler.check()
            elif isinstance(effect, LoadResults):
                record, cluster = effect
                self.scheduler.results_loaded(cluster, record, self.store.read_results(record))

    def crash(self) -> None:
        """End the broker, whatever it was about to say, and start it again."""
        self.sent.clear()
        self.scheduler = self.new_scheduler()
        self.scheduler.restore(self.store.load(), self.now)
        self.flush()
        self.flush()  # with what was read

    def rejoin(self) -> None:
        """Have the client begin a new session."""
        self.scheduler.joined(CLIENT, identity("client", CLIENT), [], "", self.now)
        self.tell(CLIENT, self.opening)

    def accepted(self) -> list[int]:
        """Take out which jobs needn't be submitted again."""
        said = [jobs for _, message in self.take(Accepted) for jobs in message.jobs]
        return [seq for first, last in said for seq in range(first, last + 1)]

    def hear(self) -> dict[int, int]:
        """Take out the results, and say that they were heard; return how jobs have ended."""
        heard = [message for _, message in self.take(Results)]
        records = [message.record for message in heard if message.record]
        if records:
            self.tell(CLIENT, ResultsHeard(1, records))
        return {each.seq: each.status for message in heard for each in message.results}
