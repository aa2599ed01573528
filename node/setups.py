"""The life of a computation here: its files, its template, its release. Pure."""

from __future__ import annotations

from dispy.protocol.fetching import Claim
from dispy.protocol.messages import TERMINATED, FilePut, Prepare, Prepared, PutFile, Released

from . import duty, endings, handover
from .effects import ClearFiles, DefineLayers, Put, StartTemplate, StopTemplate
from .state import NEVER, Computation, Node, Stage
from .telling import send, send_results

LEAVING = "the node is being stopped, since a computation asked for it"


def begin(node: Node, message: Prepare, now: float) -> None:
    """Make a computation ready: first its files, then its template."""
    if reason := LEAVING if node.leaving else duty.refusal(node, message.computation):
        send(node, Prepared(message.computation, reason, declined=True))
        return
    spec = message.spec
    max_tasks = max(0, spec.max_tasks_per_child)
    computation = Computation(
        message.computation,
        message,
        max(0, message.cpus),
        max_tasks if max_tasks > 1 else 0,
        is_fresh=max_tasks == 1,
    )
    node.computations[computation.id] = computation
    claim = Claim(computation.id, computation, [*spec.files, *message.files])
    if reason := node.fetching.add(claim):
        fail(node, computation, reason)
        return
    computation.claim = claim
    if not claim.missing:
        _start(node, computation, now)


def go_on(node: Node, computation: Computation, reason: str, now: float) -> None:
    """All its files are here, or they can't be had for this reason."""
    if computation.stage is not Stage.FETCHING:
        return  # released meanwhile
    if reason:
        fail(node, computation, reason)
    else:
        _start(node, computation, now)


def _start(node: Node, computation: Computation, now: float) -> None:
    """All files are here: load the computation."""
    computation.stage = Stage.PREPARING
    node.kept.discard(computation.id)
    node.effects.append(StartTemplate(computation.prepare))
    timeout = computation.prepare.spec.setup_timeout
    if timeout > 0:
        computation.setup_until = now + timeout
        node.wake_at(computation.setup_until)


def limit(node: Node, computation: Computation, now: float) -> None:
    """End a set-up that takes too long."""
    if computation.stage is not Stage.PREPARING:
        return
    if now >= computation.setup_until:
        limit_s = computation.prepare.spec.setup_timeout
        fail(node, computation, f"setup took longer than its limit of {limit_s:g} s")
    else:
        node.wake_at(computation.setup_until)


def ready(node: Node, computation: Computation) -> None:
    """The template can fork job processes."""
    computation.stage = Stage.READY
    computation.setup_until = NEVER
    define(node, computation)
    for claim in computation.puts.values():
        put(node, computation, claim)
    send(node, Prepared(computation.id))
    handover.take_turns(node, computation)


def define(node: Node, computation: Computation) -> None:
    """Load the layers of code that have come since."""
    if computation.layers and computation.stage is Stage.READY:
        node.effects.append(DefineLayers(computation.id, computation.layers))
        computation.layers = []
        handover.outdate(node, computation)


def put(node: Node, computation: Computation, claim: Claim) -> None:
    """Put a file into the computation's folder, when there are both."""
    if not claim.missing and computation.stage is Stage.READY:
        message: PutFile = claim.owner
        node.effects.append(Put(computation.id, message.request, message.file))


def placed(node: Node, computation: Computation, request: int, error: str) -> None:
    """A file has been put there, or ``error`` says why not."""
    claim = computation.puts.pop(request, None)
    if claim is not None:
        node.fetching.drop(claim)
        send(node, FilePut(computation.id, request, error))


def fail(node: Node, computation: Computation, reason: str) -> None:
    """The computation can't be made ready, or its template has died."""
    if computation.stage is Stage.RELEASING:
        return
    for task in endings.take_out(computation):  # the broker gives it out again
        endings.forget(node, task)
    for task in list(computation.tasks.values()):
        endings.end(node, task, TERMINATED, reason)
    send_results(node)
    send(node, Prepared(computation.id, reason))
    release(node, computation)


def release(node: Node, computation: Computation, keep: bool = False) -> None:
    """End all of the computation; ``keep``: its files stay."""
    computation.keeps = keep  # the last word counts
    if computation.stage is Stage.RELEASING:
        return
    has_template = computation.stage is not Stage.FETCHING
    computation.stage = Stage.RELEASING
    for request in list(computation.puts):
        placed(node, computation, request, "the node was released before it was there")
    for task in list(computation.tasks.values()):
        endings.forget(node, task)
    endings.take_out(computation)
    computation.spares.clear()
    for worker in computation.workers.values():
        node.busy -= bool(worker.tasks)
        worker.tasks.clear()
    if computation.claim is not None:
        node.fetching.drop(computation.claim)
    node.results.pop(computation, None)
    if has_template:
        if keep:
            node.kept.add(computation.id)
        node.effects.append(StopTemplate(computation.id, keep))
    else:
        gone(node, computation)


def release_all(node: Node) -> None:
    """Nobody is served any more."""
    node.broker = ""
    for number in node.kept - node.computations.keys():
        clear(node, number)
    node.again.clear()
    for computation in list(node.computations.values()):
        computation.again = None
        release(node, computation)


def clear(node: Node, number: int) -> None:
    """Remove what a computation has kept for the next time: there is none."""
    if number in node.kept:
        node.kept.remove(number)
        node.effects.append(ClearFiles(number))


def gone(node: Node, computation: Computation) -> None:
    """Nothing is left of the computation."""
    del node.computations[computation.id]
    for worker in list(computation.workers.values()):
        handover.lose(node, worker)
    if computation.again is not None:
        node.again.append(computation.again)
    else:
        if not computation.keeps:
            clear(node, computation.id)
        send(node, Released(computation.id))
