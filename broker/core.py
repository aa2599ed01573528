"""The broker's state machine: which node runs which job, and what becomes of it.

It does no I/O and reads no clock. Events come in through the public methods; `flush` then
places what can be placed and returns all effects since the last call, one message for each
peer and subject however many jobs it concerns. Only this file and `placement` change the state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, ClassVar

from dispy.protocol import payload
from dispy.protocol.errors import ProtocolError
from dispy.protocol.messages import (
    ABANDONED,
    CANCELLED,
    FINISHED,
    TERMINATED,
    Body,
    CancelJobs,
    CloseCluster,
    ClusterClosed,
    ClusterOpened,
    Credit,
    Done,
    Holding,
    Identity,
    Inventory,
    JobResult,
    JobSpec,
    JobsRunning,
    Kill,
    NodeGone,
    NodeReady,
    NodeTrouble,
    OpenCluster,
    Prepare,
    Prepared,
    Release,
    Released,
    Results,
    Returned,
    Run,
    Started,
    Submit,
    Withdraw,
)

from .effects import Dial, Effect, Forget, Goodbye, Send, Undial
from .placement import cpus_for, least_loaded, offer, put, take_off
from .state import Allocation, Client, Cluster, Job, Node, Stage

CREDIT = 256  # jobs that a cluster may send before the broker knows how fast they go
CREDIT_PER_CPU = 8  # ... and in the queue for each CPU, beside what the nodes hold
TURN = 16  # jobs that a cluster places before the next cluster's turn
LEASE_PULSES = 5  # a node that can't be reached for so many pulses is given up
CLIENT_LEASE_S = 60.0
PULSE_S = 5.0
LOSSES_MAX = 10  # a re-entrant job that so many nodes were lost with isn't tried again
SMOOTHING = 0.3  # weight of the newest batch in the measured job time
BREAKDOWNS_MAX = 5  # a node where a computation breaks down so often isn't asked again
WORTH_S = 0.002  # less work than this is not taken back from a node


class Scheduler:
    """Owns every job from its submission until its result is on the way to the client.

    ``first_id`` keeps the computations of different brokers at a node apart. ``check`` asserts
    all invariants; tests call it after every event.
    """

    def __init__(self, first_id: int = 0) -> None:
        self.clients: dict[str, Client] = {}
        self.nodes: dict[str, Node] = {}  # by peer
        self._places: dict[str, Node] = {}  # by the place that only one process can have
        self.clusters: dict[int, Cluster] = {}
        self.late_results = 0  # of attempts that were given up; dropped
        self._node_ids = 0
        self._cluster_ids = first_id
        self._turns: deque[Cluster] = deque()  # clusters with waiting jobs
        self._busy = 0  # clusters with jobs
        self._effects: list[Effect] = []
        self._runs: dict[Allocation, list[JobSpec]] = {}
        self._results: dict[tuple[Cluster, int], list[JobResult]] = {}
        self._idle_nodes: dict[Node, None] = {}  # have got a CPU free since the last flush
        self._uncredited: dict[Cluster, None] = {}

    # -- events --------------------------------------------------------------------------

    def receive(self, peer: str, message: Body, now: float) -> None:
        """Handle a message of a registered peer; `ProtocolError` if it makes no sense."""
        handler = self.HANDLERS.get(type(message))
        if handler is None:
            raise ProtocolError(f"a broker takes no {type(message).__name__}")
        if peer in self.nodes or peer in self.clients:  # else it was let go meanwhile
            handler(self, peer, message, now)

    def joined(
        self, peer: str, identity: Identity, undelivered: list[Body], address: str, now: float
    ) -> None:
        """A peer has registered, with nothing left of an earlier session."""
        if identity.role == "client":
            self._client_joined(peer, undelivered)
        elif identity.role == "node":
            self._node_joined(peer, identity, address)

    def away(self, peer: str, reason: str, gone: bool, now: float) -> None:
        """A peer can't be reached: its lease runs, unless it is certainly ``gone``."""
        node = self.nodes.get(peer)
        client = self.clients.get(peer)
        if node is not None and gone:
            self._lose(node, "its process is gone")
        elif node is not None and node.online:
            node.online = False
            node.lost_at = now + self._lease_s(node)
        elif client is not None and client.lost_at == float("inf"):
            client.lost_at = now + CLIENT_LEASE_S

    def back(self, peer: str) -> None:
        """A peer that was away can be reached again, and nothing was lost."""
        node = self.nodes.get(peer)
        if node is not None:
            node.online = True
            node.lost_at = float("inf")
            self._offer_node(node)
        client = self.clients.get(peer)
        if client is not None:
            client.lost_at = float("inf")

    def left(self, peer: str, reason: str) -> None:
        """A peer has ended its session for good."""
        node = self.nodes.get(peer)
        if node is not None:
            self._lose(node, reason or "it was stopped")
        client = self.clients.pop(peer, None)
        if client is not None:
            for cluster in list(client.clusters.values()):
                self._close(cluster)

    def unreachable(self, address: str, reason: str) -> None:
        """An address that some cluster asks for leads to no node at present."""
        for cluster in self.clusters.values():
            if address in _addresses(cluster.opened):
                self._trouble(cluster, address, reason)

    def tick(self, now: float) -> None:
        """Give up nodes and clients whose lease has ended."""
        for node in [node for node in self.nodes.values() if now >= node.lost_at]:
            self._lose(node, "it could not be reached for the time of its lease")
            self._effects.append(Forget(node.peer))
        for client in [each for each in self.clients.values() if now >= each.lost_at]:
            self.left(client.peer, "it could not be reached")
            self._effects.append(Forget(client.peer))

    def deadline(self) -> float:
        """When `tick` next has something to do."""
        ends = [node.lost_at for node in self.nodes.values() if not node.online]
        ends += [client.lost_at for client in self.clients.values()]
        return min(ends, default=float("inf"))

    def flush(self, now: float) -> list[Effect]:
        """Place jobs, and return everything to be done since the last call."""
        self._place()
        if self._idle_nodes:
            self._take_back()
        for allocation, jobs in self._runs.items():
            self._send(allocation.node.peer, Run(allocation.cluster.id, jobs))
        self._runs = {}
        for (cluster, node), results in self._results.items():
            self._tell(cluster, Results(cluster.opened.cluster, node, results))
        self._results = {}
        for cluster in self._uncredited:
            self._grant(cluster)
        self._uncredited = {}
        effects, self._effects = self._effects, []
        return effects

    # -- clients -------------------------------------------------------------------------

    def _client_joined(self, peer: str, undelivered: list[Body]) -> None:
        client = self.clients.setdefault(peer, Client(peer))
        client.lost_at = float("inf")
        for message in undelivered:
            self._send(peer, message)

    def _on_open(self, peer: str, message: OpenCluster, now: float) -> None:
        client = self._client(peer)
        cluster = client.clusters.get(message.cluster)
        if cluster is None:
            self._cluster_ids += 1
            cluster = Cluster(self._cluster_ids, client, message, credit=CREDIT)
            client.clusters[message.cluster] = self.clusters[cluster.id] = cluster
            for address in sorted(_addresses(message)):
                self._effects.append(Dial(address))
            for node in self.nodes.values():
                self._allocate(cluster, node)
        self._tell(cluster, ClusterOpened(message.cluster, cluster.credit))

    def _on_submit(self, peer: str, message: Submit, now: float) -> None:
        cluster = self._cluster(peer, message.cluster)
        if cluster is None or cluster.closing:
            return
        was_busy = bool(cluster.jobs)
        jobs, queue = cluster.jobs, cluster.queue
        for spec in message.jobs:
            if spec.seq <= cluster.last_seq:
                continue  # sent again after a reconnect
            cluster.last_seq = spec.seq
            spec.attempt = 0
            job = jobs[spec.seq] = Job(spec)
            queue.append(job)
            cluster.waiting += 1
        self._note_busy(cluster, was_busy)
        self._end_hopeless(cluster)

    def _on_cancel(self, peer: str, message: CancelJobs, now: float) -> None:
        cluster = self._cluster(peer, message.cluster)
        if cluster is None:
            return
        kills: dict[Allocation, list[tuple[int, int]]] = {}
        for seq in message.jobs:
            job = cluster.jobs.get(seq)
            if job is None or job.cancelled:
                continue
            job.cancelled = True
            if job.allocation is None:
                self._end(cluster, job, CANCELLED, "cancelled before it began")
            else:
                kills.setdefault(job.allocation, []).append((seq, job.spec.attempt))
        for allocation, jobs in kills.items():
            self._hand_over(allocation)  # the node must know a job before it can end it
            self._send(allocation.node.peer, Kill(cluster.id, jobs))

    def _on_close(self, peer: str, message: CloseCluster, now: float) -> None:
        cluster = self._cluster(peer, message.cluster)
        if cluster is None:
            self._send(peer, ClusterClosed(message.cluster))
        else:
            self._close(cluster)

    def _close(self, cluster: Cluster) -> None:
        """End the jobs that are left, and let the nodes clean up."""
        cluster.closing = True
        for job in list(cluster.jobs.values()):
            job.cancelled = True
            self._end(cluster, job, CANCELLED, "the cluster was closed")
        for allocation in list(cluster.allocations.values()):
            self._runs.pop(allocation, None)
            allocation.enter(Stage.RELEASING)
            self._send(allocation.node.peer, Release(cluster.id))
            if not allocation.node.online:
                self._drop(allocation)  # it is told when it comes back; see also _on_holding
        self._finish_closing(cluster)

    def _finish_closing(self, cluster: Cluster) -> None:
        if not cluster.closing or cluster.allocations:
            return
        del self.clusters[cluster.id]
        cluster.client.clusters.pop(cluster.opened.cluster, None)
        self._uncredited.pop(cluster, None)
        for key in [key for key in self._results if key[0] is cluster]:
            results = self._results.pop(key)
            self._tell(cluster, Results(cluster.opened.cluster, key[1], results))
        self._tell(cluster, ClusterClosed(cluster.opened.cluster))
        self._free_nodes(_addresses(cluster.opened) - self._wanted(cluster))

    def _free_nodes(self, addresses: set[str]) -> None:
        """Let nodes that no cluster asks for any more work for others."""
        for address in sorted(addresses):
            self._effects.append(Undial(address))
        for node in [node for node in self.nodes.values() if node.address in addresses]:
            if not node.allocations:
                self._forget_node(node)
                self._effects.append(Goodbye(node.peer, "no cluster needs it any more"))

    # -- nodes ---------------------------------------------------------------------------

    def _node_joined(self, peer: str, identity: Identity, address: str) -> None:
        other = self._places.get(identity.place)
        if other is not None and other.peer != peer:
            self._lose(other, "it was started anew")
            self._effects.append(Forget(other.peer))
        node = self.nodes.get(peer)
        if node is None:
            self._node_ids += 1
            node = Node(self._node_ids, peer, identity, address or identity.address)
            self.nodes[peer] = node
            if identity.place:
                self._places[identity.place] = node
        node.online, node.lost_at, node.counted = True, float("inf"), False

    def _on_holding(self, peer: str, message: Holding, now: float) -> None:
        """Bring both sides to the same view after a new session."""
        node = self._node(peer)
        node.counted = True
        held = set(message.jobs)
        self._adopt(node, message)
        for allocation in list(node.allocations.values()):
            self._reconcile(allocation, held, allocation.cluster.id in message.computations)
        for computation in message.computations:
            if computation not in node.allocations:
                self._send(peer, Release(computation))
        keep = [
            (allocation.cluster.id, job.spec.seq, job.spec.attempt)
            for allocation in node.allocations.values()
            for job in allocation.jobs.values()
        ]
        awaited = [
            (cluster, seq, attempt)
            for cluster, seq, attempt in message.jobs
            if self._may_return(cluster, seq, attempt)
        ]
        self._send(peer, Inventory(keep + awaited))
        for cluster in self.clusters.values():
            self._allocate(cluster, node)

    def _adopt(self, node: Node, message: Holding) -> None:
        """A node that was given up is back: go on where it stands."""
        for computation in message.computations:
            cluster = self.clusters.get(computation)
            if cluster is None or cluster.closing or computation in node.allocations:
                continue
            cpus = self._cpus_of(cluster, node)
            if cpus:
                allocation = Allocation(cluster, node, cpus)
                node.allocations[computation] = cluster.allocations[node.id] = allocation
                self._adopt_jobs(allocation, message)
                self._ready(allocation)

    def _adopt_jobs(self, allocation: Allocation, message: Holding) -> None:
        """Jobs that wait to be tried again, but still run there, needn't be."""
        cluster = allocation.cluster
        for computation, seq, attempt in message.jobs:
            job = cluster.jobs.get(seq)
            if computation != cluster.id or job is None or job.allocation is not None:
                continue
            if job.spec.attempt == attempt:
                job.ended = True  # this entry of the queue; the job goes on as another
                cluster.waiting -= 1
                cluster.jobs[seq] = adopted = Job(job.spec)
                adopted.losses = job.losses
                put(adopted, allocation)

    def _reconcile(
        self, allocation: Allocation, held: set[tuple[int, int, int]], known: bool
    ) -> None:
        cluster = allocation.cluster
        self._runs.pop(allocation, None)
        allocation.withdrawing = False
        for job in list(allocation.jobs.values()):
            if (cluster.id, job.spec.seq, job.spec.attempt) not in held:
                self._requeue(job)  # it never got there
            elif job.cancelled:
                kill = Kill(cluster.id, [(job.spec.seq, job.spec.attempt)])
                self._send(allocation.node.peer, kill)
        if allocation.stage is Stage.RELEASING:
            if known:
                self._send(allocation.node.peer, Release(cluster.id))
            else:
                self._drop(allocation)
                self._finish_closing(cluster)
        elif not known:
            allocation.enter(Stage.PREPARING)
            self._prepare(allocation)
        else:
            offer(allocation)

    def _may_return(self, computation: int, seq: int, attempt: int) -> bool:
        cluster = self.clusters.get(computation)
        if cluster is None:
            return False
        job = cluster.jobs.get(seq)
        if job is not None:  # a later attempt is due, but this one may end first
            return job.allocation is None and job.spec.attempt == attempt
        return cluster.abandoned.get(seq) == attempt

    def _allocate(self, cluster: Cluster, node: Node) -> None:
        """Have a node set up for a cluster that asks for it."""
        if cluster.closing or not node.counted or cluster.id in node.allocations:
            return
        cpus = self._cpus_of(cluster, node)
        if not cpus:
            return
        allocation = Allocation(cluster, node, cpus)
        node.allocations[cluster.id] = cluster.allocations[node.id] = allocation
        self._prepare(allocation)

    def _cpus_of(self, cluster: Cluster, node: Node) -> int:
        addresses = (node.address, node.identity.address)
        return cpus_for(cluster.opened.nodes, node.identity, addresses)

    def _prepare(self, allocation: Allocation) -> None:
        opened = allocation.cluster.opened
        prepare = Prepare(
            allocation.cluster.id,
            opened.name,
            opened.code,
            opened.max_tasks_per_child,
            opened.cancel_grace,
            allocation.cpus,
        )
        self._send(allocation.node.peer, prepare)

    def _on_prepared(self, peer: str, message: Prepared, now: float) -> None:
        allocation = self._allocation(peer, message.computation)
        if allocation is None or allocation.stage not in (Stage.PREPARING, Stage.READY):
            return
        if not message.error:
            if allocation.stage is Stage.PREPARING:
                self._ready(allocation)
            return
        node = allocation.node
        self._trouble(allocation.cluster, node.address or node.identity.name, message.error)
        if allocation.stage is Stage.READY and allocation.breakdowns < BREAKDOWNS_MAX:
            allocation.breakdowns += 1
            self._take_all_back(allocation)
            allocation.enter(Stage.PREPARING)
            self._prepare(allocation)
        else:
            self._take_all_back(allocation)
            allocation.enter(Stage.FAILED)
            self._end_hopeless(allocation.cluster)

    def _take_all_back(self, allocation: Allocation) -> None:
        """What the node had set up is gone: it has told how all ended that had begun there."""
        self._runs.pop(allocation, None)
        allocation.withdrawing = False
        for job in reversed(list(allocation.jobs.values())):
            self._requeue(job)

    def _ready(self, allocation: Allocation) -> None:
        cluster = allocation.cluster
        allocation.enter(Stage.READY)
        cluster.troubles.pop(allocation.node.address, None)
        offer(allocation)
        self._idle_nodes[allocation.node] = None
        self._uncredited[cluster] = None
        ready = NodeReady(cluster.opened.cluster, allocation.node.info, allocation.cpus)
        self._tell(cluster, ready)

    def _on_released(self, peer: str, message: Released, now: float) -> None:
        allocation = self._allocation(peer, message.computation)
        if allocation is not None and allocation.stage is Stage.RELEASING:
            self._drop(allocation)
            self._finish_closing(allocation.cluster)

    def _drop(self, allocation: Allocation) -> None:
        """The node has no part in the cluster any more."""
        assert not allocation.jobs
        cluster, node = allocation.cluster, allocation.node
        del cluster.allocations[node.id], node.allocations[cluster.id]
        cluster.surplus.pop(allocation, None)
        allocation.enter(Stage.RELEASING)  # what is left of it in the heap is skipped

    def _lose(self, node: Node, reason: str) -> None:
        """A node is gone: run its jobs again where that is allowed."""
        self._forget_node(node)
        for allocation in list(node.allocations.values()):
            self._runs.pop(allocation, None)
            for job in list(allocation.jobs.values()):
                self._on_loss(job, f"node {node.identity.name} was lost: {reason}")
            cluster = allocation.cluster
            was_ready = allocation.stage is Stage.READY
            self._drop(allocation)
            if was_ready:
                self._tell(cluster, NodeGone(cluster.opened.cluster, node.id, reason))
            self._end_hopeless(cluster)
            self._finish_closing(cluster)

    def _forget_node(self, node: Node) -> None:
        del self.nodes[node.peer]
        self._idle_nodes.pop(node, None)
        if self._places.get(node.identity.place) is node:
            del self._places[node.identity.place]

    def _on_loss(self, job: Job, reason: str) -> None:
        allocation = job.allocation
        assert allocation is not None
        cluster = allocation.cluster
        job.losses += 1
        if job.cancelled:
            self._end(cluster, job, CANCELLED, f"cancelled; {reason}")
        elif cluster.opened.reentrant and job.losses < LOSSES_MAX:
            self._requeue(job)
        else:
            cluster.abandoned[job.spec.seq] = job.spec.attempt
            self._end(cluster, job, ABANDONED, reason)

    # -- jobs ----------------------------------------------------------------------------

    def _on_done(self, peer: str, message: Done, now: float) -> None:
        cluster = self.clusters.get(message.computation)
        node = self._node(peer)
        if cluster is None:
            self.late_results += len(message.results)
            return
        was_busy = bool(cluster.jobs)
        accepted = [result for result in message.results if self._accept(cluster, result)]
        self.late_results += len(message.results) - len(accepted)
        if not accepted:
            return
        key = (cluster, node.id)
        if key in self._results:
            self._results[key] += accepted
        else:
            self._results[key] = accepted
        self._measure(cluster, accepted)
        self._idle_nodes[node] = None
        allocation = node.allocations.get(cluster.id)
        if allocation is not None:
            allocation.stubborn = False
        if was_busy and not cluster.jobs:
            self._busy -= 1

    def _accept(self, cluster: Cluster, result: JobResult) -> bool:
        """Take the result of the job's latest attempt, wherever the job is now."""
        job = cluster.jobs.get(result.seq)
        if job is None:
            if cluster.abandoned.get(result.seq) != result.attempt or result.status != FINISHED:
                return False
            del cluster.abandoned[result.seq]  # its node has come back
            return True
        if result.attempt != job.spec.attempt:
            return False
        if job.allocation is not None:
            take_off(job)
        else:
            cluster.waiting -= 1  # it was queued for another attempt
        job.ended = True
        del cluster.jobs[result.seq]
        return True

    @staticmethod
    def _measure(cluster: Cluster, results: list[JobResult]) -> None:
        mean = sum([result.end - result.start for result in results]) / len(results)
        mean = max(0.0, mean)
        if cluster.run_s < 0:
            cluster.run_s = mean
        else:
            cluster.run_s += SMOOTHING * (mean - cluster.run_s)
        cluster.measured += len(results)

    def _on_started(self, peer: str, message: Started, now: float) -> None:
        cluster = self.clusters.get(message.computation)
        if cluster is None:
            return
        jobs = [
            (seq, start)
            for seq, attempt, start in message.jobs
            if seq in cluster.jobs and cluster.jobs[seq].spec.attempt == attempt
        ]
        if jobs:
            node = self._node(peer)
            self._tell(cluster, JobsRunning(cluster.opened.cluster, node.id, jobs))

    def _on_returned(self, peer: str, message: Returned, now: float) -> None:
        allocation = self._allocation(peer, message.computation)
        if allocation is None:
            return
        if message.asked:
            allocation.withdrawing = False
            allocation.stubborn = not message.jobs
        else:  # it is being stopped: its goodbye comes next, and nothing may be placed there
            self.away(peer, "it is being stopped", False, now)
        for seq, attempt in reversed(message.jobs):
            job = allocation.jobs.get(seq)
            if job is not None and job.spec.attempt == attempt:
                self._requeue(job)

    def _requeue(self, job: Job) -> None:
        """Put a job that has to be sent (again) at the head of the queue."""
        allocation = job.allocation
        assert allocation is not None
        cluster = allocation.cluster
        if job.cancelled:
            self._end(cluster, job, CANCELLED, "cancelled before it began")
            return
        take_off(job)
        cluster.queue.appendleft(job)
        cluster.waiting += 1
        self._take_turns(cluster)

    def _end(self, cluster: Cluster, job: Job, status: int, reason: str) -> None:
        """End a job that no node will report."""
        node_id = 0
        if job.allocation is not None:
            node_id = job.allocation.node.id
            self._withhold(job)
            take_off(job)
        else:
            cluster.waiting -= 1
        if job.spec.attempt == 0:  # its place in the queue is free for another one
            cluster.placed += 1
            self._uncredited[cluster] = None
        job.ended = True
        del cluster.jobs[job.spec.seq]
        if not cluster.jobs:
            self._busy -= 1
        body = payload.pack_result(b"", b"", b"", reason)
        result = JobResult(job.spec.seq, job.spec.attempt, status, 0.0, 0.0, body)
        self._results.setdefault((cluster, node_id), []).append(result)

    def _withhold(self, job: Job) -> None:
        """Don't send what has ended in the moment of its placement."""
        assert job.allocation is not None
        run = self._runs.get(job.allocation)
        if run is not None and job.spec in run:
            run.remove(job.spec)

    def _end_hopeless(self, cluster: Cluster) -> None:
        """End what waits when every node that could have run it has failed to set it up."""
        if not cluster.failed or cluster.failed < len(cluster.allocations):
            return
        reason = "; ".join(f"{where}: {why}" for where, why in cluster.troubles.items())
        for job in [job for job in cluster.queue if not job.ended]:
            self._end(cluster, job, TERMINATED, f"no node could set the computation up: {reason}")

    # -- placement -----------------------------------------------------------------------

    def _note_busy(self, cluster: Cluster, was_busy: bool) -> None:
        if cluster.jobs and not was_busy:
            self._busy += 1
        self._take_turns(cluster)

    def _take_turns(self, cluster: Cluster) -> None:
        if cluster not in self._turns:
            self._turns.append(cluster)

    def _place(self) -> None:
        """Give waiting jobs to nodes, clusters taking turns, until nodes or jobs run out."""
        stuck = 0
        while stuck < len(self._turns):
            cluster = self._turns[0]
            self._turns.rotate(-1)
            placed = self._place_turn(cluster)
            if not cluster.waiting:
                self._turns.remove(cluster)
                cluster.queue.clear()  # only ended jobs are left in it
            elif not placed:
                stuck += 1
            if placed:
                stuck = 0
                self._uncredited[cluster] = None

    def _place_turn(self, cluster: Cluster) -> int:
        placed, ahead, queue = 0, cluster.ahead, cluster.queue
        turn = TURN if len(self._turns) > 1 else len(queue)
        while placed < turn and queue:
            if queue[0].ended:
                queue.popleft()
                continue
            allocation = least_loaded(cluster, ahead, self._busy)
            if allocation is None:
                break
            job = queue.popleft()
            cluster.waiting -= 1
            placed += 1
            spec = job.spec
            if spec.attempt == 0:
                cluster.placed += 1
            spec.attempt += 1
            put(job, allocation)
            run = self._runs.get(allocation)
            if run is None:
                self._runs[allocation] = [spec]
            else:
                run.append(spec)
        return placed

    def _take_back(self) -> None:
        """Nodes that have become idle get what others hold ahead, if that is worth the way."""
        idle, self._idle_nodes = self._idle_nodes, {}
        for node in idle:
            room = node.identity.cpus - node.load
            if room <= 0 or not node.online:
                continue
            for cluster_id, allocation in node.allocations.items():
                cluster = self.clusters[cluster_id]
                if allocation.stage is Stage.READY and not cluster.waiting and cluster.surplus:
                    self._withdraw(cluster, room)

    def _withdraw(self, cluster: Cluster, room: int) -> None:
        for allocation in list(cluster.surplus):
            extra = len(allocation.jobs) - allocation.cpus
            if allocation.withdrawing or allocation.stubborn or not allocation.node.online:
                continue
            if extra * cluster.run_s < WORTH_S * allocation.cpus or allocation in self._runs:
                continue
            allocation.withdrawing = True
            count = -(-extra // 2)
            self._send(allocation.node.peer, Withdraw(cluster.id, count))
            room -= count
            if room <= 0:
                return

    def _hand_over(self, allocation: Allocation) -> None:
        """Send what was placed since the last flush at once."""
        jobs = self._runs.pop(allocation, None)
        if jobs:
            self._send(allocation.node.peer, Run(allocation.cluster.id, jobs))

    def _grant(self, cluster: Cluster) -> None:
        """Ask the client for more jobs: enough to keep the nodes busy, not more."""
        room = max(CREDIT, cluster.capacity * (CREDIT_PER_CPU + 2 * cluster.ahead))
        limit = cluster.placed + room
        if limit - cluster.credit >= room // 4:
            cluster.credit = limit
            self._tell(cluster, Credit(cluster.opened.cluster, limit))

    # -- looking up and saying -----------------------------------------------------------

    def _client(self, peer: str) -> Client:
        client = self.clients.get(peer)
        if client is None:
            raise ProtocolError("only a client may say this")
        return client

    def _node(self, peer: str) -> Node:
        node = self.nodes.get(peer)
        if node is None:
            raise ProtocolError("only a node may say this")
        return node

    def _cluster(self, peer: str, number: int) -> Cluster | None:
        return self._client(peer).clusters.get(number)

    def _allocation(self, peer: str, computation: int) -> Allocation | None:
        return self._node(peer).allocations.get(computation)

    def _offer_node(self, node: Node) -> None:
        for allocation in node.allocations.values():
            offer(allocation)
            self._take_turns(allocation.cluster)
        self._idle_nodes[node] = None

    def _lease_s(self, node: Node) -> float:
        pulses = [each.cluster.opened.pulse_interval for each in node.allocations.values()]
        return LEASE_PULSES * min(pulses, default=PULSE_S)

    def _wanted(self, but: Cluster) -> set[str]:
        """The addresses that clusters ask for, one of them left out."""
        others = [cluster for cluster in self.clusters.values() if cluster is not but]
        return {address for other in others for address in _addresses(other.opened)}

    def _trouble(self, cluster: Cluster, address: str, reason: str) -> None:
        if cluster.troubles.get(address) != reason:
            cluster.troubles[address] = reason
            self._tell(cluster, NodeTrouble(cluster.opened.cluster, address, reason))

    def _tell(self, cluster: Cluster, message: Body) -> None:
        self._send(cluster.client.peer, message)

    def _send(self, peer: str, message: Body) -> None:
        self._effects.append(Send(peer, message))

    # -- invariants ----------------------------------------------------------------------

    def check(self) -> None:
        """Assert what must hold between any two events."""
        for node in self.nodes.values():
            assert node.load == sum(len(each.jobs) for each in node.allocations.values())
            assert node.online == (node.lost_at == float("inf"))
        assert self._busy == sum(bool(cluster.jobs) for cluster in self.clusters.values())
        for cluster in self.clusters.values():
            self._check_cluster(cluster)

    def _check_cluster(self, cluster: Cluster) -> None:
        queued = [job for job in cluster.queue if not job.ended]
        held = [job for each in cluster.allocations.values() for job in each.jobs.values()]
        assert cluster.waiting == len(queued)
        assert len(queued) + len(held) == len(cluster.jobs)
        assert all(job.allocation is None for job in queued)
        assert not cluster.waiting or cluster in self._turns
        assert not cluster.jobs.keys() & cluster.abandoned.keys()
        for allocation in cluster.allocations.values():
            assert allocation.node.allocations[cluster.id] is allocation
            assert self.nodes[allocation.node.peer] is allocation.node
            for seq, job in allocation.jobs.items():
                assert job.allocation is allocation and cluster.jobs[seq] is job
                assert job.spec.attempt > 0
        ready = [each for each in cluster.allocations.values() if each.stage is Stage.READY]
        assert cluster.capacity == sum(each.cpus for each in ready)
        failed = [each for each in cluster.allocations.values() if each.stage is Stage.FAILED]
        assert cluster.failed == len(failed)

    HANDLERS: ClassVar[dict[type[Any], Callable[..., None]]] = {
        OpenCluster: _on_open,
        Submit: _on_submit,
        CancelJobs: _on_cancel,
        CloseCluster: _on_close,
        Holding: _on_holding,
        Prepared: _on_prepared,
        Done: _on_done,
        Started: _on_started,
        Returned: _on_returned,
        Released: _on_released,
    }


def _addresses(opened: OpenCluster) -> set[str]:
    """The addresses to dial for a cluster: entries of ``nodes=`` that name a port."""
    return {_address(spec.pattern, spec.port) for spec in opened.nodes if spec.port}


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
