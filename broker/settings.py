"""How a broker works: what its command line or its embedding program decides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

FAIR = "fair"  # users and clusters have equal shares by weight
FIFO = "fifo"  # the jobs of the cluster that was opened first go first
POLICIES = (FAIR, FIFO)


@dataclass(frozen=True)
class Settings:
    """All times are in seconds. The defaults are those of a broker in a client's process."""

    durable: bool = False  # there is a journal: what is acknowledged is on disk
    policy: str = FAIR
    weights: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))  # by user
    client_lease_s: float = 60.0  # a client that is away for longer is given up
    retain_s: float = 7 * 86400.0  # results of such clients are kept for so long, with a journal
    adopt_s: float = 25.0  # after a start: how long nodes may take to come back with their jobs
    pulse_s: float = 0.0  # pulse interval of all computations; 0: as each one says
    cooperative: bool = False  # clients may change how many CPUs of a node are used
    shared: bool = False  # several programs use it: it is no private broker of one
    loaded_jobs: int = 20_000  # jobs of a cluster in memory; later ones wait on disk
    loaded_bytes: int = 64 << 20  # the same, by size of their payload
    max_file_bytes: int = 0  # larger files are refused; 0: none are
    nodes: tuple[str, ...] = ()  # addresses that are always dialled, whatever clusters ask for
