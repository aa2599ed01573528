"""How far away a node is, and how many jobs ahead hide the way there and back.

Measured with jobs that a free CPU gets: from when they are placed until their results are here,
less the time that they ran. So the answer contains whatever the CPU would have to wait for, and
when too few jobs are ahead of it there are measurements. The least of the last few counts, since
all else that may delay a result is no distance. Only this file changes what is in it.
"""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .state import Job

NEAR_S = 0.01  # a node that isn't farther is treated as if it were here
FAR_MAX_S = 1.0  # nobody has to wait behind more than that because a node is far away
SAMPLES = 8  # measurements of which the least counts
ENOUGH = 4  # fewer of them say nothing
WORTH = 0.02  # a CPU may idle for so much of the time, rather than have long jobs wait behind it


class Distance:
    """What is known of one node."""

    __slots__ = ("_samples", "far_s", "underway")

    def __init__(self) -> None:
        self.far_s = 0.0  # there and back; 0: it is near, or nothing is known
        self.underway: dict[Job, float] = {}  # to free CPUs, and when; so there are few
        self._samples: deque[float] = deque(maxlen=SAMPLES)

    def sent(self, job: Job, now: float) -> None:
        """Note that a free CPU gets a job."""
        self.underway[job] = now

    def ended(self, job: Job, ran_s: float, now: float) -> None:
        """Note that a job's result is here; what it says of its time may be nonsense."""
        since = self.underway.pop(job, None)
        if since is None:
            return
        way_s = now - since - max(0.0, ran_s)
        if way_s >= 0.0:
            self._samples.append(min(way_s, FAR_MAX_S))
        if len(self._samples) >= ENOUGH:
            least = min(self._samples)
            self.far_s = least if least > NEAR_S else 0.0

    def gone(self, job: Job) -> None:
        """Note that a job has left the node, whether it has ended or not."""
        self.underway.pop(job, None)


def ahead(run_s: float, far_s: float, here: int, depth_s: float, most: int) -> int:
    """Return how many jobs a far node may hold per CPU beyond those that run.

    ``here``: as many as if it were near, where ``depth_s`` of work are ahead, ``most`` jobs.
    """
    if run_s < 0 or far_s < WORTH * run_s:
        return here
    least = ceil(far_s / run_s) if run_s > 0 else most
    fit = int((depth_s + far_s) / (run_s + 1e-6))
    return min(max(least, fit), int(most * (1 + far_s / depth_s)))
