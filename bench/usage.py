"""CPU time and memory of this process and of those below it.

Read with psutil, whose CPU times have the kernel's resolution of 10 ms: measure seconds.
"""

from __future__ import annotations

import psutil


def cpu_seconds_of_all() -> float:
    """User and system time of this process and its descendants, ended ones included."""
    this = psutil.Process()
    return sum(_cpu_seconds(process) for process in [this, *this.children(recursive=True)])


def _cpu_seconds(process: psutil.Process) -> float:
    """Times of a process, and of its ended children that it has waited for."""
    try:
        return float(sum(process.cpu_times()[:4]))  # own user and system, then the children's
    except psutil.NoSuchProcess:
        return 0.0  # it just ended; its parent has its times now


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    size: int = psutil.Process().memory_info().rss
    return size
