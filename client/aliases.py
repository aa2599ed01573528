"""Names of older releases, each with the one it has now. No other file knows them."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cluster import JobCluster
    from .job import DispyJob
    from .nodes import DispyNode

PARAMETERS = {
    "callback": "job_status",
    "ext_ip_addr": "ext_host",
    "fault_recover": "recover_file",
    "ip_addr": "host",
    "port": "dispy_port",
}
SHARED_PARAMETERS = {**PARAMETERS, "port": "client_port"}
DERIVED_PORTS = {"node_port": 1, "scheduler_port": 2}  # what they were above dispy_port


def new_names(old: dict[str, Any], shared: bool = False) -> dict[str, Any]:
    """Return parameters of a cluster that were given by old names, by their new ones.

    ``shared``: it is a `SharedJobCluster`. Raises `TypeError` for a name that was never one.
    """
    parameters = SHARED_PARAMETERS if shared else PARAMETERS
    renamed: dict[str, Any] = {}
    for name, value in old.items():
        if name == "fault_recover" and isinstance(value, bool):
            continue  # with a file of its own choice, which is what happens anyway
        if name in DERIVED_PORTS and isinstance(value, int):
            new, value = "dispy_port", value - DERIVED_PORTS[name]
        elif name in parameters:
            new = parameters[name]
        else:
            kind = "SharedJobCluster" if shared else "JobCluster"
            raise TypeError(f"{kind} has no parameter {name!r}")
        warnings.warn(f"{name} is called {new} now", DeprecationWarning, stacklevel=3)
        renamed[new] = value
    return renamed


class OldJobNames:
    """What `DispyJob` offers beside its own names."""

    __slots__ = ()

    @property
    def ip_addr(self: DispyJob) -> str | None:  # type: ignore[misc]
        """The same as ``host``."""
        return self.host


class OldClusterNames:
    """What `JobCluster` offers beside its own names."""

    def stats(self: JobCluster, wall_time: float | None = None) -> None:  # type: ignore[misc]
        """Do what ``print_status`` does."""
        self.print_status(wall_time)

    def running_jobs(self: JobCluster, node: DispyNode | str) -> list[DispyJob]:  # type: ignore[misc]
        """Do what ``node_jobs`` does."""
        return self.node_jobs(node)
