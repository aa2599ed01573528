"""Why jobs and nodes are not where they should be, in words for users. Pure."""

from __future__ import annotations

from dispy.protocol.messages import NodeSpec

from .job import DispyJob
from .state import Cluster, State

BROKER = "broker"  # instead of an address: no node is the reason, but the broker


def why_no_broker(state: State, cluster: Cluster, job: DispyJob) -> str:
    """Say that all of that is up to a broker that can't be reached."""
    reason = f" ({state.unreachable})" if state.unreachable else ""
    if job._seq in cluster.accepted:
        return f"the broker has it, and can't be reached{reason}; its results come later"
    return f"it waits for the connection to the broker{reason}"


def why_not_sent(cluster: Cluster, job: DispyJob) -> str:
    """Say why a job is still here."""
    ahead = sum(other._seq in cluster.unfinished for other in cluster.waiting.before(job))
    text = f"it waits in this program, behind {ahead + len(cluster.away)} jobs."
    if cluster.rejection:
        text += f" The broker takes none at present: {cluster.rejection}."
    return text


def unsaid(cluster: Cluster, text: str) -> str:
    """Say what an explanation of the broker leaves out of the troubles with nodes."""
    if cluster.troubles:
        why = [f"{at}: {why}" for at, why in cluster.troubles.items() if why not in text]
    else:
        why = [] if cluster.met or "no answer from" in text else [_why_no_node(cluster)]
    return f" ({'; '.join(why)})" if why else ""


def complaint(cluster: Cluster) -> str:
    """Say that a cluster has no node, and why."""
    reasons = _why_no_node(cluster)
    return f"cluster {cluster.name!r} has no node to run jobs on ({reasons}); still trying"


def unclosed(cluster: Cluster) -> str:
    """Say that a cluster ends here only."""
    return (
        f"cluster {cluster.name!r} is closed while its broker can't be reached: the jobs that it "
        "has go on until it is told by this program, or gives it up"
    )


def _why_no_node(cluster: Cluster) -> str:
    """Say which nodes a cluster waits for, and why."""
    reasons = [f"{address}: {why}" for address, why in cluster.troubles.items()]
    silent = [spec for spec in cluster.opening.nodes if not _is_explained(cluster, spec)]
    if silent:
        reasons.append("no answer from " + ", ".join(map(_describe, silent)))
    return "; ".join(reasons)


def _is_explained(cluster: Cluster, spec: NodeSpec) -> bool:
    """Whether there is a reason for a node, or for any at all that a pattern may mean."""
    if "*" in spec.pattern or BROKER in cluster.troubles:
        return bool(cluster.troubles)
    at = [address.rpartition(":") for address in cluster.troubles]
    return any(
        host.strip("[]") == spec.pattern.strip("[]") and (not spec.port or port == str(spec.port))
        for host, _, port in at
    )


def _describe(spec: NodeSpec) -> str:
    return f"{spec.pattern}:{spec.port}" if spec.port else spec.pattern
