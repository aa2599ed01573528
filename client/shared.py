"""SharedJobCluster: a cluster at a broker that several programs use.

All that a `JobCluster` does, this does as well. What differs is where the broker is, that nodes
are the broker's to find, and that jobs outlive the program.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace as replaced
from typing import Any

from msgspec.structs import replace

from dispy.protocol.messages import ComputationSpec, NodeSpec, OpenCluster
from dispy.protocol.protection import NOTHING, Protection

from . import config, parameters, process, remote
from .aliases import new_names
from .allocate import (
    Entry,
    LocalNode,
    NodeAllocate,
    asks,
    is_pattern,
    look_up_all,
    read_nodes,
    resolve,
)
from .cluster import JobCluster
from .ledger import ClusterStatusCallback, JobOutput, JobStatus
from .nodes import DispyNode
from .session import Session

AT_THE_BROKER = ("ipv4_udp_multicast", "ping_interval", "pulse_interval")


class SharedJobCluster(JobCluster):
    """A computation whose jobs a broker shares out, beside those of other programs and users.

    ``dispy-broker`` must run at ``scheduler_node``. It keeps jobs and results on its disk: they
    survive its end, and that of this program, be it killed or ended by an exception of its own:
    then `recover_jobs` gets the results. While the broker can't be reached, jobs wait.

    The parameters are those of `JobCluster`, but for these:

    - ``nodes``: as there, but only nodes that the broker knows, or that it can dial, since they
      are given with their port. By default all that it has. `LocalNode`, and subclasses of
      `NodeAllocate` with their own ``allocate``, aren't possible: the broker runs no code of
      its clients.
    - ``client_port``: not needed, since nothing ever connects to a client.
    - ``dispy_port``: the first of the broker's range of ports, by default `config.DispyPort`;
      clients get to it at the next but one.
    - ``scheduler_node``: where the broker runs: "host" or "host:port", by default this machine.
      ``scheduler_host`` is the same.
    - ``exclusive``: wait until all clusters that others have opened before are closed, then use
      all nodes alone.
    - ``name``: what people call the cluster, for example to recover it; by default the name of
      the computation.
    - ``weight``: this cluster's part of its user's share, beside the user's other clusters,
      0.001 to 1e6.

    ``pulse_interval``, ``ping_interval`` and ``ipv4_udp_multicast`` are options of the broker.

    Raises what `JobCluster` does. A broker that can't be reached is no error: a warning says so
    and it is tried until it can.
    """

    def __init__(
        self,
        computation: Callable[..., Any] | str,
        nodes: Entry | Iterable[Entry] | None = None,
        depends: Sequence[object] = (),
        job_status: JobStatus | None = None,
        cluster_status: ClusterStatusCallback | None = None,
        host: str | Iterable[str] | None = None,
        client_port: int | None = 0,
        dispy_port: int | None = None,
        scheduler_node: str | None = None,
        ext_host: str | Iterable[str] | None = None,
        loglevel: int | None = None,
        setup: object = None,
        cleanup: object = True,
        dest_path: str | None = None,
        reentrant: bool = False,
        poll_interval: float | None = None,
        exclusive: bool = False,
        secret: str = "",
        keyfile: str | None = None,
        certfile: str | None = None,
        recover_file: str | None = None,
        *,
        scheduler_host: str | None = None,
        name: str | None = None,
        weight: float = 1.0,
        max_tasks_per_child: int | None = 1,
        cancel_grace: float = parameters.GRACE_S,
        setup_timeout: float | None = None,
        timeout: float | None = None,
        retries: int = 0,
        priority: int = 0,
        job_output: JobOutput | None = None,
        insecure: bool = False,
        **old: Any,
    ) -> None:
        arguments = locals()  # by their names, which are those of the fields of `Given`
        for wrong in AT_THE_BROKER:
            if wrong in old:
                raise TypeError(
                    f"SharedJobCluster has no parameter {wrong!r}: the broker has such an option"
                )
        given = parameters.Given.of(arguments)
        renamed = new_names(old, shared=True)
        parameters.check_client_port(renamed.pop("client_port", client_port))
        parameters.check_flag("exclusive", exclusive)
        self._exclusive = exclusive
        self._label = parameters.read_label(name)
        self._weight = parameters.read_weight(weight)
        if scheduler_node and scheduler_host and scheduler_node != scheduler_host:
            raise TypeError("scheduler_host is the same as scheduler_node: give only one of them")
        self._scheduler = scheduler_node or scheduler_host
        self._begin(replaced(given, **renamed))

    def resetup_node(self, node: DispyNode | str, terminate_pending: bool = False) -> int:
        """Do nothing but return -1: a node that others use as well isn't set up again."""
        return self._failed("resetup_node", "it isn't possible with a SharedJobCluster")

    def _find_nodes(
        self, entries: list[NodeAllocate | LocalNode], dispy_port: int | None
    ) -> list[NodeSpec]:
        port = config.SharedSchedulerPort if dispy_port is None else dispy_port + 2
        self._address = remote.read_address(
            "scheduler_node", self._scheduler, port, self._protection
        )
        return self._specs(entries)

    def _opening(
        self, spec: ComputationSpec, specs: list[NodeSpec], reentrant: bool, asks: bool
    ) -> OpenCluster:
        opening = super()._opening(spec, specs, reentrant, asks)
        return replace(opening, label=self._label, exclusive=self._exclusive, weight=self._weight)

    def _connected(self) -> AbstractContextManager[Session]:
        return process.session_at(self._address, self._protection)

    def discover_nodes(self, nodes: Entry | Sequence[Entry]) -> int:
        """Have the broker dial these nodes; the cluster uses those that its ``nodes`` match.

        Entries without a port mean `config.NodePort`. Returns 0, or -1 if that's impossible.
        """
        with_ports = []
        for entry in read_nodes(nodes):
            if isinstance(entry, NodeAllocate) and not is_pattern(entry) and not entry.port:
                entry = NodeAllocate(entry.host, self._node_port, entry.cpus)
            with_ports.append(entry)
        return super().discover_nodes(with_ports)

    def _specs(
        self, entries: Sequence[NodeAllocate | LocalNode], start: bool = True
    ) -> list[NodeSpec]:
        """Say which nodes are meant; ``start`` makes no difference, for nothing is started."""
        specs: list[NodeSpec] = []
        for entry in entries:
            if isinstance(entry, LocalNode):
                raise TypeError(
                    "nodes: a LocalNode is a private node of one program, and can't be one of a "
                    "SharedJobCluster"
                )
            if asks([entry]):
                raise TypeError(
                    f"nodes: {type(entry).__name__} has its own allocate(), which a "
                    "SharedJobCluster can't call: the broker runs no code of its clients. Give "
                    "host, cpus, depends and setup_args to NodeAllocate instead"
                )
            files, setup_args = self._pack_entry(entry)
            for spec in places(entry, self._protection):
                specs.append(replace(spec, files=files, setup_args=setup_args))
        return specs


def places(entry: NodeAllocate, protection: Protection = NOTHING) -> list[NodeSpec]:
    """Say where an entry's nodes are; only those with a port are dialled.

    A host is meant by its address or as the name of a node, which needn't be a host's.
    """
    if entry.port and not is_pattern(entry):
        return [resolve(entry, entry.port, protection)]
    addresses = [] if is_pattern(entry) else look_up_all(entry.host)
    names = dict.fromkeys([*addresses, entry.host])
    return [NodeSpec(name, 0, entry.cpus) for name in names]
