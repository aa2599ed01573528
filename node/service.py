"""The hours of the day in which a node takes jobs.

Pure: the time is the local time of day, in seconds since midnight, as a clock on the wall shows
it. Whoever asks again at least every minute is right also when the clocks are changed.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import NamedTuple

DAY_S = 24 * 3600
_TIME = re.compile(r"([01]?\d|2[0-3]):([0-5]\d)(?::([0-5]\d))?", re.ASCII)


class Phase(Enum):
    """What a node does at a time of day."""

    OPEN = "open"  # it takes jobs
    STOPPED = "stopped"  # it takes none; those that have begun go on
    ENDED = "ended"  # it takes none, and none goes on


class Hours(NamedTuple):
    """Open from ``start`` to ``stop``; what has begun may go on until ``end``.

    All are times of day, in seconds. They follow each other within a day, which may begin at
    any time: 18:00, 06:00, 07:00 is a night.
    """

    start: int
    stop: int
    end: int | None  # None: what has begun may go on as long as it takes

    def phase(self, time_s: float) -> Phase:
        """Return what is to be done at a time of day."""
        since = (time_s - self.start) % DAY_S
        if since < self.after_start(self.stop):
            return Phase.OPEN
        if self.end is None or since < self.after_start(self.end):
            return Phase.STOPPED
        return Phase.ENDED

    def until_change(self, time_s: float) -> float:
        """Return the seconds until the next of the times: more than 0, at most a day."""
        times = [self.start, self.stop, self.stop if self.end is None else self.end]
        return min([DAY_S - (time_s - each) % DAY_S for each in times])

    def reason(self, phase: Phase) -> str:
        """Say why no jobs are taken; nothing while they are."""
        if phase is Phase.OPEN:
            return ""
        reason = f"out of service until {spelled(self.start)}"
        if phase is Phase.STOPPED and self.end not in (None, self.stop):
            reason += f"; jobs that run may go on until {spelled(self.end or 0)}"
        return reason

    def ending(self) -> str:
        """Say why a job that runs is ended."""
        return f"the node's service ended at {spelled(self.end or 0)}"

    def after_start(self, time_s: int) -> int:
        """Return how long after the start a time of day comes."""
        return (time_s - self.start) % DAY_S


def hours_of(start: str, stop: str, end: str) -> Hours | None:
    """Return the hours that three options mean, empty ones left out; None: around the clock.

    Without ``stop``, it is ``end``. Raises `ValueError` with a message for the user.
    """
    if not (start or stop or end):
        return None
    if not start or not (stop or end):
        raise ValueError("a service has a start, and a stop or an end: give both")
    hours = Hours(seconds_of(start), seconds_of(stop or end), seconds_of(end) if end else None)
    if hours.start in hours[1:]:
        raise ValueError(f"a service that starts at {start} can't stop or end at that time")
    if hours.end is not None and hours.after_start(hours.end) < hours.after_start(hours.stop):
        raise ValueError(
            f"after the start at {start}, the end at {end} comes before the stop at {stop}"
        )
    return hours


def seconds_of(text: str) -> int:
    """Return the time of day that "18:00" or "18:00:30" means; raises `ValueError`."""
    found = _TIME.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"{text!r} is not a time of day such as 18:00")
    return int(found[1]) * 3600 + int(found[2]) * 60 + int(found[3] or 0)


def spelled(time_s: int) -> str:
    """Return a time of day as people write it; the reverse of `seconds_of`."""
    minutes, seconds = divmod(time_s, 60)
    text = f"{minutes // 60:02d}:{minutes % 60:02d}"
    return f"{text}:{seconds:02d}" if seconds else text
