"""Figures of several rounds. What is compared is compared within a round. Pure.

A machine that others use as well may be half as fast a minute later: a ratio of figures that were
measured one right after the other holds, one of medians over the whole time may not.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from statistics import median
from typing import TypeAlias

Figures: TypeAlias = dict[str, float]


class Rounds:
    """What was measured: some of it once, some of it in each of several rounds."""

    def __init__(self) -> None:
        self._values: dict[str, list[float]] = {}

    def add(self, figures: Figures) -> None:
        """Take in what one measurement has given in one round."""
        for key, value in figures.items():
            self._values.setdefault(key, []).append(value)

    def drop(self, key: str) -> None:
        """Leave out a figure that couldn't be had in some round."""
        self._values.pop(key, None)

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def figure(self, key: str) -> float:
        """Return the median of a figure; `KeyError` if there is none."""
        return median(self._values[key])

    def value(self, of: Callable[[Figures], float]) -> float:
        """Return the median of what is computed from the figures of a round.

        `KeyError` if no round has all the figures that it needs.
        """
        values: list[float] = []
        for number in range(max(map(len, self._values.values()), default=0)):
            with suppress(KeyError):
                values.append(of(self._round(number)))
        if not values:
            raise KeyError("not measured")
        return median(values)

    def _round(self, number: int) -> Figures:
        """Return the figures of a round; what was measured once belongs to all."""
        return {
            key: each[0] if len(each) == 1 else each[number]
            for key, each in self._values.items()
            if len(each) == 1 or number < len(each)
        }
