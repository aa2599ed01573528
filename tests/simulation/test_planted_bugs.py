"""The simulator finds bugs: each one planted here must be caught, or the faults are too tame.

A bug is a change of one line. It is made in the source text of a function, which is compiled
anew and put into place for the time of the test.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pytest

from dispy import core as client_core
from dispy import endings as endings_at_client
from dispy import news, rejoining
from dispy.broker import (
    attaching,
    backlog,
    batches,
    clients,
    closing,
    drain,
    exclusive,
    intake,
    jobs,
    nodes,
    placement,
    puts,
    records,
    requests,
    restore,
    results,
    setups,
    submissions,
    turns,
    unheard,
)
from dispy.broker import blobs as broker_blobs
from dispy.broker import core as broker_core
from dispy.broker import line as broker_line
from dispy.broker.daemon import BrokerDaemon
from dispy.node import core as node_core
from dispy.node import endings, files, handover, reports
from dispy.node import setups as node_setups
from dispy.protocol import connections, exchange, fetching, link
from dispy.reports import Report

from .planting import PART, Bug, catching_seed, planted
from .scenarios import (
    GREETED_S,
    play_cancelled_queue,
    play_closed_node,
    play_given_up_node,
    play_seed,
)
from .sharedworlds import (
    play_full_disk,
    play_lost_records,
    play_orphan,
    play_shared_seed,
    play_silent_client,
    play_stopped_nodes,
    play_taken_over,
)
from .world import World

# They catch most, so they go first.
GOOD = (4, 5, 9, 2, 3, 29, 39, 38, 42, 11, 22, 28, 19, 59, 0, 34, 43, 61, 104)
SEEDS: Sequence[int] = (*GOOD, *range(200))
FAULTS = 5
SHARED_GOOD = (0, 17, 53, 62, 89, 71, 125)
SHARED_FAULTS = 8
SHARED_SEEDS: Sequence[int] = (*SHARED_GOOD, *range(SHARED_FAULTS, 900, SHARED_FAULTS + 1))


DIRECTED: dict[int, Callable[[], World]] = {
    -5: play_closed_node,
    -4: partial(play_given_up_node, is_cut=True),
    -3: partial(play_given_up_node, GREETED_S),
    -2: play_given_up_node,
    -1: play_cancelled_queue,
}


SHARED_DIRECTED: dict[int, Callable[[], World]] = {
    -7: play_lost_records,
    -6: play_stopped_nodes,
    -5: play_full_disk,
    -4: partial(play_silent_client, is_taken=True),
    -3: play_silent_client,
    -2: play_orphan,
    -1: play_taken_over,
}


S, A, L, X = broker_core.Scheduler, node_core.Agent, link.Link, exchange.Exchange
F, C, D, R = fetching.Fetching, client_core.Core, BrokerDaemon, Report
BUGS = [
    Bug(jobs, "lose", "cluster.opened.reentrant and", "True and"),
    Bug(broker_line.Line, "put_back", "self.waiting += 1", "pass"),
    Bug(turns, "_give", "spec.attempt += 1", "pass"),
    Bug(nodes, "node_away", "node.lost_at = now +", "node.lost_at = 1e9 +"),
    Bug(nodes, "node_back", "node.online = True", "pass"),
    Bug(nodes, "node_back", 'node.lost_at = float("inf")', "pass"),
    Bug(closing, "_wind_up", "allocation.enter(Stage.RELEASING)", "continue"),
    Bug(turns, "grant", "cluster.credit = limit", "return"),
    Bug(jobs, "_report", "del cluster.jobs[job.spec.seq]", "pass"),
    Bug(jobs, "_report", "cluster.placed += 1", "pass"),
    Bug(closing, "_released", "finish_closing(state, cluster)", "pass"),
    Bug(placement, "put", "node.load += 1", "pass"),
    Bug(placement, "take_off", "state.freed.append(node)", "pass"),
    Bug(turns, "place", "stuck.append(account)", "pass"),
    Bug(reports, "exited", "handover.take_back(node, worker, len(worker.tasks))", "pass"),
    Bug(handover, "idle", "node.busy -= 1", "pass"),
    Bug(endings, "press", "node.effects.append(Destroy(worker.id))", "pass"),
    Bug(node_setups, "release", "node.effects.append(StopTemplate(computation.id, keep))", "pass"),
    Bug(reports, "revoked", "handover.take_back(node, worker, count)", "pass"),
    Bug(node_setups, "gone", "send(node, Released(computation.id))", "pass"),
    Bug(A, "_report_holding", "send(self.node, Holding(", "str(Holding("),
    Bug(L, "receive", "if envelope.seq != self.received + 1:", "if False:"),
    Bug(L, "receive", "envelope.sent > self.received", "False"),
    Bug(L, "connect", "self._waiting.extendleft(reversed(self._unacked))", "pass"),
    Bug(L, "connect", "reversed(self._unacked)", "self._unacked"),
    Bug(L, "_acknowledged", "self._unacked[0].seq <= seq", "self._unacked[0].seq <= seq + 1"),
    Bug(X, "tick", "now > link.heard + link.silence_s", "False"),
    Bug(connections.Connections, "broken", "self.hang_up(dial)", "pass"),
    Bug(connections.Connections, "forget", "if dial.peer == peer:", "if False:"),
    # Files.
    Bug(F, "kept", "if not claim.missing:", "if True:"),
    Bug(F, "_append", "blob.got + size == blob.size", "True"),
    Bug(files, "_settle_job", "computation.queue.append(task)", "pass"),
    Bug(broker_blobs, "_note_had", "state.underway -= arrived", "pass"),
    Bug(broker_blobs, "_next_request", "state.fetchers.append(node)", "pass"),
    Bug(puts, "_put", "state.order(allocation, PutFile(", "str(PutFile("),
    # Code.
    Bug(handover, "outdate", "worker.outdated = True", "pass"),
    Bug(handover, "outdate", "computation.spares.clear()", "pass"),
    Bug(setups, "define", "state.order(allocation, Define(", "str(Define("),
    # Records.
    Bug(records, "_on_records_heard", "state.order(allocation, RecordsHeard(", "str(RecordsHeard("),
    Bug(records, "_on_records", "state.send(peer, RecordsHeard(cluster.id, deaf))", "pass"),
    Bug(nodes, "_on_holding", "answer_again(state, node, message.jobs)", "pass"),
    Bug(news, "_arrives", "return report.arrive(record.number)", "return True"),
    Bug(C, "hear", "cluster.heard += heard", "pass"),
    # Limits, retries, priorities, jobs for one node.
    Bug(endings, "limit", "interrupt(node, worker, now)", "pass"),
    Bug(results, "_is_tried_again", "if job.failures > retries:", "if job.failures > retries + 1:"),
    Bug(results, "_is_tried_again", "if not retries or job.cancelled:", "if True:"),
    Bug(
        broker_line.Line,
        "_queue",
        "insort(self._priorities, priority)",
        "self._priorities.append(priority)",
    ),
    Bug(jobs, "pin", "offer(allocation)", "pass"),
    Bug(jobs, "put_back", "cluster.pinned += 1", "pass"),
    Bug(nodes, "lose_node", "end_pinned(state, allocation, ABANDONED, why)", "pass"),
    # Requests.
    Bug(closing, "close", "allocation.cluster.shares[allocation.node.peer] = Share(0)", "pass"),
    Bug(closing, "_released", "allocation.enter(Stage.CLOSED)", "start_over(state, allocation)"),
    Bug(closing, "_released", "start_over(state, allocation)", "pass"),
    Bug(requests, "_use", "allocation.suspend(False)", "pass"),
    Bug(requests, "_on_node_request", "state.send(peer, Answer(", "str(Answer("),
    Bug(setups, "release_if_free", "state.order(allocation, Release(", "str(Release("),
    Bug(node_setups, "limit", "now >= computation.setup_until", "False"),
    Bug(A, "_tick_pulse", "self.node.effects.append(Measure())", "pass"),
]


SHARED_BUGS = [
    # What is kept.
    Bug(D, "_flush", "kept = [", "kept, self.later = getattr(self, 'later', []), ["),
    Bug(batches, "keep", "state.effects.append(KeepBatch(", "str(KeepBatch("),
    Bug(batches, "note_placed", "_mark(batch, job, node)", "pass"),
    Bug(batches, "say_progress", "state.effects.append(KeepProgress(", "str(KeepProgress("),
    Bug(batches, "accept", "accepted.append((first, last))", "pass"),
    Bug(jobs, "put_back", "note(state, job)", "pass"),
    Bug(closing, "_forget", "state.effects.append(DropCluster(cluster.id))", "pass"),
    Bug(drain, "drain", "keep(state, node)", "pass"),
    # Results.
    Bug(unheard, "_keep", "state.effects.append(KeepResults(", "str(KeepResults("),
    Bug(
        unheard,
        "_keep",
        "_tell(state, cluster, [record])",
        "_tell(state, cluster, [record]); state.effects.append(DropResults([record]))",
    ),
    Bug(unheard, "_on_results_heard", "state.effects.append(DropResults(heard))", "pass"),
    Bug(unheard, "send_again", "_tell(state, cluster, sorted(", "str(sorted("),
    Bug(unheard, "tell_untold", "_tell(state, cluster, untold)", "pass"),
    # What is there after a restart.
    Bug(batches, "recall", "ended[: len(kept.progress.ended)] = kept.progress.ended", "pass"),
    Bug(restore, "_recall_batch", "cluster.seen.add_range(batch.first, batch.last)", "pass"),
    Bug(restore, "_recall_cluster", "hold(state, cluster, message)", "pass"),
    Bug(restore, "_dial_all", "wanted |= cluster.addresses", "pass"),
    Bug(jobs, "resume", "job.spec.attempt = mark.attempt", "pass"),
    Bug(jobs, "resume", "put(job, allocation)", "cluster.line.put_back(job)"),
    Bug(intake, "_enter", "if some_ended and has_ended(batch, index):", "if False:"),
    Bug(clients, "returning", "client.lost_at = now +", "client.lost_at = 1e9 +"),
    Bug(nodes, "recall", "now + state.settings.adopt_s", "now + 1e9"),
    # Jobs that wait on disk.
    Bug(intake, "load_ahead", "_load_some(state, cluster, first.priority)", "pass"),
    Bug(intake, "loaded", "_go_on(state, cluster, pinned)", "pass"),
    Bug(backlog, "end_all", "strike_all(state, batch)", "pass"),
    Bug(backlog, "_end", "strike(state, batch, index)", "pass"),
    # Who has a cluster.
    Bug(attaching, "_on_attach", "tell_all(state, found)", "pass"),
    Bug(attaching, "_move", "state.keep(cluster)", "pass"),
    Bug(attaching, "_note_taken", "state.taken[loser] = cluster.id", "return"),
    Bug(attaching, "_say_attached", "list(ranges(sorted(unended(cluster))))", "[]"),
    Bug(exclusive, "leave", "_review(state)", "pass"),
    Bug(clients, "set_trouble", "state.uncredited[cluster] = None", "pass"),
    Bug(submissions, "_reject_new", "state.tell(cluster, rejected)", "pass"),
    # Their programs.
    Bug(rejoining, "_resume", "take_back(state, number, cluster, unsure)", "pass"),
    Bug(endings_at_client, "on_results", "cluster.results_heard.append(message.record)", "pass"),
    Bug(R, "deal", "self._undone and self._undone[0] in", "self.heard + 1 in"),
]


def play_plain(seed: int) -> None:
    play_seed(seed, FAULTS)


def play_shared(seed: int) -> None:
    play_shared_seed(seed, SHARED_FAULTS)


@pytest.mark.parametrize("bug", BUGS[::PART], ids=lambda bug: f"{bug.function}: {bug.line}")
def test_a_planted_bug_is_caught(bug: Bug) -> None:
    with planted(bug):
        seed = catching_seed(play_plain, SEEDS, DIRECTED)
    assert seed is not None, "the bug survived all seeds"
    print(f"caught by seed {seed}")
    assert seed in GOOD or seed < 0, f"caught by seed {seed}: is that clean without the bug?"


@pytest.mark.parametrize("bug", SHARED_BUGS[::PART], ids=lambda bug: f"{bug.function}: {bug.line}")
def test_a_planted_bug_of_a_shared_broker_is_caught(bug: Bug) -> None:
    with planted(bug):
        seed = catching_seed(play_shared, SHARED_SEEDS, SHARED_DIRECTED)
    assert seed is not None, "the bug survived all seeds"
    print(f"caught by seed {seed}")
    assert seed in SHARED_GOOD or seed < 0, f"caught by seed {seed}: is that clean without the bug?"


def test_without_a_bug_nothing_fails() -> None:
    assert catching_seed(play_plain, GOOD, DIRECTED) is None
    assert catching_seed(play_shared, SHARED_GOOD, SHARED_DIRECTED) is None


@pytest.mark.parametrize(
    "bug", [*BUGS, *SHARED_BUGS], ids=lambda bug: f"{bug.function}: {bug.line}"
)
def test_each_bug_can_be_planted(bug: Bug) -> None:
    with planted(bug):
        pass


def test_there_are_enough_bugs() -> None:
    assert len(BUGS) >= 36
    assert len(set(BUGS)) == len(BUGS)
    assert len(SHARED_BUGS) >= 30
    assert len(set(SHARED_BUGS)) == len(SHARED_BUGS)
