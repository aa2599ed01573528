"""A program under a broker that says babble: its core goes on, and each job ends once at most."""

from __future__ import annotations

import os
import random
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from dispy.core import Core
from dispy.effects import Ended
from dispy.job import DispyJob
from dispy.protocol import messages as m
from dispy.protocol.errors import ProtocolError

from .babble import Babbler
from .underfire import FILES, RANGES

COUNT = int(os.environ.get("DISPY_FUZZ", "6000"))
STEPS = 300
JOBS = 20
LIES = (0.0, 0.02, 0.1, 0.3)
FROM_BROKER = (
    m.ClusterOpened, m.Accepted, m.Rejected, m.ClusterLost, m.Attached, m.Credit, m.Results,
    m.Results, m.JobsRunning, m.NodeReady, m.NodeGone, m.NodeTrouble, m.Answer, m.NodeOffer,
    m.NodeVitals, m.JobsRequeued, m.ClusterClosed, m.Records, m.NeedBlobs, m.Report,
)  # fmt: skip
LIKELY: dict[str | type, Sequence[Any]] = {
    "cluster": [1, 1, 2], "seq": list(range(1, JOBS + 1)), "attempt": [1, 1, 2], "number": [1, 2],
    "jobs": list(range(1, JOBS + 1)), "status": [8, 9, 10, 11], "node": [0, 1, 2], "id": [1, 2],
    "kind": [1, 2, 3], "credit": [5, 100], "limit": [5, 100], "request": [1, 2],
    m.FileSpec: FILES, m.BlobRange: RANGES,
}  # fmt: skip


def test_cores_of_clients() -> None:
    for seed in range(max(1, COUNT // STEPS // 2)):
        print("seed", seed)
        chance = random.Random(seed)
        babbler = Babbler(chance, LIES[seed % len(LIES)])
        babbler.likely = dict(LIKELY)
        play(chance, babbler)


def play(chance: random.Random, babbler: Babbler) -> None:
    core, now = Core(), 0.0
    ended: dict[int, list[int]] = defaultdict(list)  # how often, by job
    spec = m.ComputationSpec("c", [m.Code("3", m.JobSpec(0, 0, b"f"))])
    for number in (1, 2):
        core.open(m.OpenCluster(number, spec, [m.NodeSpec("*")]), now)
    core.join(now)
    for seq in range(1, JOBS + 1):
        core.submit(1, new_job(seq))
    for _ in range(STEPS):
        now += chance.choice((0.0, 0.1, 2.0))
        try:
            core.receive(babbler.message(chance.choice(FROM_BROKER)), now)
        except ProtocolError:
            continue
        core.tick(now)
        core.check()
        for effect in core.take():
            if isinstance(effect, Ended):
                for _, result in effect.jobs:
                    ended[result.seq].append(result.status)
    for seq, statuses in ended.items():
        assert len(statuses) == 1 or statuses == [m.ABANDONED, m.FINISHED], (seq, statuses)


def new_job(seq: int) -> DispyJob:
    return DispyJob(1, m.JobSpec(seq, 0, b"x"), None, (), {})
