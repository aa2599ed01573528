"""Which numbers have come already, in constant time and little memory.

All numbers up to a mark have come; what came above it is kept as bits. When the gaps close, the
mark moves on and the bits go. A number that never comes keeps the mark where it is, and then
the others cost less than a byte each.
"""

from __future__ import annotations

from collections.abc import Collection

from dispy.protocol.errors import ProtocolError

NUMBER_MAX = 1 << 53
BLOCK = 256  # numbers that share an entry


def check_numbers(numbers: Collection[int]) -> None:
    """Raise `ProtocolError` if one is so large that nobody can have counted so far."""
    if numbers and max(numbers) > NUMBER_MAX:
        number = max(numbers)
        raise ProtocolError(f"jobs are numbered from 1, so there can't be a number {number}")


class Seen:
    """A set of numbers from 1 that only grows."""

    __slots__ = ("_blocks", "upto")

    def __init__(self) -> None:
        self.upto = 0  # all numbers up to this one are in the set
        self._blocks: dict[int, int] = {}  # number // BLOCK -> bits, for numbers above it

    def add(self, number: int) -> bool:
        """Add a number that `check_numbers` lets through; False if it was there, or is below 1."""
        if number == self.upto + 1:
            self.upto = number
            if self._blocks:
                self._climb()
            return True
        if number <= self.upto:
            return False
        block, bit = divmod(number, BLOCK)
        bits = self._blocks.get(block, 0)
        if bits >> bit & 1:
            return False
        self._blocks[block] = bits | 1 << bit
        return True

    def add_range(self, first: int, last: int) -> None:
        """Add all numbers from ``first`` to ``last``."""
        if last <= self.upto:
            return
        if first <= self.upto + 1:
            self.upto = last
            for block in [each for each in self._blocks if each < last // BLOCK]:
                del self._blocks[block]
            self._climb()
            return
        for block in range(first // BLOCK, last // BLOCK + 1):
            low, high = max(first - block * BLOCK, 0), min(last - block * BLOCK, BLOCK - 1)
            bits = (1 << high - low + 1) - 1 << low
            self._blocks[block] = self._blocks.get(block, 0) | bits

    def _climb(self) -> None:
        """Move the mark over what lies right above it; each number is passed only once."""
        blocks = self._blocks
        while True:
            block, bit = divmod(self.upto + 1, BLOCK)
            if bit == 0:
                blocks.pop(block - 1, None)
            if not blocks.get(block, 0) >> bit & 1:
                return
            self.upto += 1

    def __contains__(self, number: int) -> bool:
        block, bit = divmod(number, BLOCK)
        return number <= self.upto or bool(self._blocks.get(block, 0) >> bit & 1)

    def __len__(self) -> int:
        """Say how many entries are kept."""
        return len(self._blocks)
