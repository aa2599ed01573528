"""Which computations, jobs and requests wait for files, and how they go on.

How the files get here is decided in `fetching`. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from dispy.protocol.fetching import Claim
from dispy.protocol.messages import TERMINATED, FilePut, FileSpec, NeedBlobs, PutFile

from . import endings, handover, setups
from .state import Computation, Node, Special, Task
from .telling import send


def claim_for_job(node: Node, task: Task, special: Special, files: Sequence[FileSpec]) -> bool:
    """Fetch the files of a job; return whether all of them are here."""
    claim = Claim(task.computation.id, task, files)
    if reason := node.fetching.add(claim):
        endings.end(node, task, TERMINATED, reason)
        return False
    special.claim = claim
    if claim.missing:
        task.computation.waiting[task] = None
    return not claim.missing


def claim_for_put(node: Node, computation: Computation, message: PutFile) -> None:
    """Fetch a file, and then put it into the computation's folder."""
    if message.request in computation.puts:
        return  # sent again after a new session
    claim = Claim(computation.id, message, [message.file])
    if reason := node.fetching.add(claim):
        send(node, FilePut(computation.id, message.request, reason))
        return
    computation.puts[message.request] = claim
    setups.put(node, computation, claim)


def settle(node: Node, now: float) -> None:
    """Go on with what has its files now, and end what can't have them."""
    fetching = node.fetching
    settled, fetching.settled = fetching.settled, []
    for claim, reason in settled:
        owner = claim.owner
        if isinstance(owner, Task):
            _settle_job(node, owner, reason)
        elif isinstance(owner, Computation):
            setups.go_on(node, owner, reason, now)
        else:
            _settle_put(node, claim, reason)


def _settle_job(node: Node, task: Task, reason: str) -> None:
    computation = task.computation
    if task not in computation.waiting:
        return  # ended meanwhile
    del computation.waiting[task]
    if reason:
        endings.end(node, task, TERMINATED, reason)
    else:
        computation.queue.append(task)
        handover.take_turns(node, computation)


def _settle_put(node: Node, claim: Claim, reason: str) -> None:
    computation = node.computations.get(claim.computation)
    request: int = claim.owner.request
    if computation is None or computation.puts.get(request) is not claim:
        return  # released meanwhile
    if reason:
        setups.placed(node, computation, request, reason)
    else:
        setups.put(node, computation, claim)


def fetch(node: Node, now: float) -> None:
    """Ask for what may be asked for, and have written what has come."""
    fetching = node.fetching
    if fetching.stirred:
        requests = fetching.requests(now)
        arrived = fetching.tell()
        if arrived and not requests:
            requests = [(0, [])]
        for number, ranges in requests:
            send(node, NeedBlobs(number, 0, ranges, fetching.pieces))
        node.wake_at(fetching.deadline())
    if fetching.effects:
        node.effects += fetching.effects
        fetching.effects = []
