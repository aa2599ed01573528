"""What must hold between any two events, asserted after each of them in the tests."""

from __future__ import annotations

from dispy.protocol.fetching import Claim

from .state import Computation, Node, Stage


def check(node: Node) -> None:
    """Assert all that can be seen of the node's state."""
    assert node.busy == sum(bool(worker.tasks) for worker in node.workers.values())
    assert node.busy <= node.cpus
    node.fetching.check([claim for each in node.computations.values() for claim in _claims(each)])
    for computation in node.computations.values():
        _check_tasks(computation)
        _check_workers(computation)
        _check_claims(computation)


def _check_tasks(computation: Computation) -> None:
    queued = [*computation.queue, *computation.waiting]
    given = [task for worker in computation.workers.values() for task in worker.tasks]
    live = [task for task in given if computation.tasks.get(task.spec.seq) is task]
    assert len(queued) + len(live) == len(computation.tasks)
    assert all(task.worker is None for task in queued)
    assert all(task.worker is not None for task in given)
    assert all(computation.tasks[task.spec.seq] is task for task in queued)
    if any(task.special is not None for task in computation.tasks.values()):
        assert computation.has_special


def _check_workers(computation: Computation) -> None:
    for worker in computation.workers.values():
        left = computation.stage is Stage.RELEASING  # nobody counts any more
        assert left or worker.given - worker.ended == len(worker.tasks) or worker.spent
        limited = [task for task in worker.tasks if task.special and task.special.limit_s]
        assert not limited or len(worker.tasks) == 1
    assert len(set(computation.spares)) == len(computation.spares)
    for spare in computation.spares:
        assert not spare.tasks and computation.workers[spare.id] is spare
        assert not spare.outdated
    if computation.stage is Stage.READY:
        workers = computation.workers.values()
        assert set(computation.spares) == {
            worker for worker in workers if not worker.tasks and not worker.spent
        }
    elif computation.stage is not Stage.RELEASING:
        assert not computation.workers


def _claims(computation: Computation) -> list[Claim]:
    """Return all claims that anything of the computation has."""
    special = [task.special for task in computation.tasks.values() if task.special is not None]
    claims = [*computation.puts.values(), computation.claim, *(each.claim for each in special)]
    return [claim for claim in claims if claim is not None]


def _check_claims(computation: Computation) -> None:
    claim = computation.claim
    if computation.stage is Stage.FETCHING:
        assert claim is not None
    elif computation.stage is not Stage.RELEASING:
        assert claim is not None and not claim.missing
    else:
        assert not computation.puts and not computation.tasks
    for task in computation.waiting:
        assert task.special is not None and task.special.claim is not None
    for task in computation.queue:
        assert task.special is None or not task.special.claim or not task.special.claim.missing
