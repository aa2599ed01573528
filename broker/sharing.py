"""Who is next when users and clusters want the same CPUs: start-time fair queueing.

Each cluster has a *tag*: the CPU time that its jobs have had, and will probably have where they
have been sent, divided by its weight. The cluster with the lowest tag is served next. Each user
has a tag in the same way, beside the other users, and a user's clusters share what the user gets.
The *clock* of a level is the highest tag that anyone had there when it was served. Whoever comes
(back) to wait starts at the clock at least: so nobody is paid back for the time before, and since
the clock goes on with those who are served, nobody pays for it either.

The lengths of jobs aren't known beforehand: what was charged is put right as jobs run and end.

P. Goyal, H. M. Vin, H. Cheng: Start-time Fair Queuing, SIGCOMM 1996; in two levels as in
P. Goyal, X. Guo, H. M. Vin: A Hierarchical CPU Scheduler for Multimedia Operating Systems, OSDI
1996. Only this file changes what is in it. Plain numbers and heaps: O(log) per decision in
clusters and in users; times in seconds.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from .settings import FIFO

if TYPE_CHECKING:
    from .state import Cluster

START_S = 0.05  # a job is thought to take so long at least while none of its cluster has ended
REPORTED_S = 0.05  # a job has run for so long when nodes say that it runs
OVERHEAD_S = 5e-5  # a CPU is busy that long with each job beside its own time
MEMORY = 32  # results, or twice the jobs at nodes: the estimate of their length goes so far back
SLACK_S = 1e-3  # a tag that has fallen by less isn't worth a new place
WEIGHT_MIN, WEIGHT_MAX = 1e-3, 1e3
LAG_S = 10.0  # a tag is at most so much of all CPUs' time behind the clock
LOOK_S = 0.05  # how often all are looked at


class User:
    """One who runs programs, with the clusters of all of them."""

    __slots__ = ("clock", "lines", "name", "per", "tag", "weight")

    def __init__(self, name: str, weight: float, tag: float) -> None:
        self.name = name
        self.weight = weight
        self.per = 1.0 / weight
        self.tag = tag
        self.clock = 0.0  # among its clusters
        self.lines: list[_Line] = []  # where clusters of it wait


class Account:
    """What a cluster has had, and its place among those that wait."""

    __slots__ = (
        "blocked",
        "charged_s",
        "cluster",
        "cursor",
        "est_s",
        "line",
        "listed",
        "measured",
        "narrow",
        "new",
        "new_s",
        "per",
        "started",
        "started_sum",
        "tag",
        "used_s",
        "user",
        "weight",
    )

    def __init__(self) -> None:
        self.cluster: Cluster | None = None  # while it waits
        self.user: User | None = None  # once it has waited
        self.weight = self.per = 1.0
        self.tag = 0.0
        self.used_s = 0.0  # by jobs that have ended, failed attempts as well
        self.charged_s = 0.0  # what the tag contains
        self.est_s = START_S  # how long a job takes, as far as is known
        self.measured = 0  # results in that figure
        self.new = 0  # attempts that have ended and aren't charged yet
        self.new_s = 0.0  # ... and how long they took in all
        self.started = 0  # jobs that are known to run
        self.started_sum = 0.0  # ... and the sum of the times when they began
        self.line: _Line | None = None  # where it waits
        self.listed = 0.0  # the tag that it has there
        self.blocked = False  # no node had room when it was served last
        self.narrow = False  # ... for the jobs that waited then; now there may be others
        self.cursor = 0  # how many of the places that became free it knows of

    def begun(self, since: float) -> None:
        """A job is known to run, as was heard then."""
        self.started += 1
        self.started_sum += since

    def begun_no_more(self, since: float) -> None:
        """A job that was known to run is at its node no longer."""
        self.started -= 1
        self.started_sum = self.started_sum - since if self.started else 0.0

    def running_s(self, now: float) -> float:
        """Return how long the jobs that are known to run have been doing so, in all."""
        return max(0.0, self.started * (now + REPORTED_S) - self.started_sum)

    def settle(self, held: int, now: float) -> None:
        """Put the tag right, for so many jobs at nodes: those that ran, run and will run."""
        total = self.used_s + held * self.est_s
        if self.started:
            longer_s = self.started * (now + REPORTED_S - self.est_s) - self.started_sum
            if longer_s > 0:  # than was thought
                total += longer_s
        delta = total - self.charged_s
        self.charged_s = total
        user = self.user
        if user is None or not delta:
            return
        self.tag += delta * self.per
        user.tag += delta * user.per
        if delta < 0:
            self._list_again(user)

    def _list_again(self, user: User) -> None:
        """Its tag has fallen: it may go before others now. Those that have grown can wait."""
        if self.line is not None and self.tag < self.listed - SLACK_S * self.per:
            self.line.put(self)
        for line in user.lines:
            if user.tag < line.listed - SLACK_S * user.per:
                line.queue.put(line)

    def ended(self, held: int, now: float) -> None:
        """Charge what ``new`` says, while so many jobs are at nodes."""
        count = self.new
        total_s = self.new_s + count * OVERHEAD_S
        self.new, self.new_s = 0, 0.0
        self.used_s += total_s
        measured = self.measured + count
        if measured > MEMORY:
            measured = min(measured, max(MEMORY, 2 * held, count))
        self.measured = measured
        self.est_s += (total_s - self.est_s * count) / measured
        self.settle(held, now)


class _Line:
    """The clusters of one user that wait, by tag."""

    __slots__ = ("count", "heap", "listed", "queue", "user")

    def __init__(self, user: User, queue: Queue) -> None:
        self.user = user
        self.queue = queue
        self.count = 0
        self.listed = math.inf  # the user's tag in the queue; infinite: it isn't there
        self.heap: list[tuple[float, int, Account]] = []

    def put(self, account: Account) -> None:
        account.listed = account.tag
        heapq.heappush(self.heap, (account.tag, self.queue.next(), account))
        if len(self.heap) > 4 * self.count + 16:
            kept = {each[2]: each for each in self.heap if self._is_current(each)}
            self.heap = list(kept.values())
            heapq.heapify(self.heap)

    def accounts(self) -> list[Account]:
        return list({each[2]: None for each in self.heap if each[2].line is self})

    def _is_current(self, entry: tuple[float, int, Account]) -> bool:
        return entry[2].line is self and entry[0] == entry[2].listed

    def first(self) -> Account:
        heap = self.heap
        while True:
            key, _, account = heap[0]
            if account.line is not self or key != account.listed:
                heapq.heappop(heap)  # an older entry of it
            elif account.tag > key:
                account.listed = account.tag
                heapq.heapreplace(heap, (account.tag, self.queue.next(), account))
            else:
                return account


class Queue:
    """Accounts that wait, by the tags of their users, then by their own.

    Tags that have grown are put right when they come up; those that fall tell. Between equal
    tags it is the one that was listed first.
    """

    def __init__(self) -> None:
        self.count = 0
        self._lines: dict[User, _Line] = {}
        self._heap: list[tuple[float, int, _Line]] = []
        self._last = 0

    def next(self) -> int:
        """Number the entries."""
        self._last += 1
        return self._last

    def add(self, account: Account) -> None:
        """Have an account wait."""
        assert account.line is None and account.user is not None
        line = self._lines.get(account.user)
        if line is None:
            line = self._lines[account.user] = _Line(account.user, self)
            account.user.lines.append(line)
            self.put(line)
        line.count += 1
        self.count += 1
        account.line = line
        line.put(account)

    def remove(self, account: Account) -> None:
        """Have an account wait no longer."""
        line, user = account.line, account.user
        assert line is not None and line.queue is self and user is not None
        account.line = None
        line.count -= 1
        self.count -= 1
        if not line.count:
            line.listed = math.inf
            del self._lines[user]
            user.lines.remove(line)

    def put(self, line: _Line) -> None:
        """List a user's line by the tag that the user has now."""
        line.listed = line.user.tag
        heapq.heappush(self._heap, (line.listed, self.next(), line))
        if len(self._heap) > 4 * len(self._lines) + 16:
            kept = {each[2]: each for each in self._heap if each[0] == each[2].listed}
            self._heap = list(kept.values())
            heapq.heapify(self._heap)

    def first(self) -> Account | None:
        """Return the account that is next."""
        if not self.count:
            return None
        heap = self._heap
        while True:
            key, _, line = heap[0]
            tag = line.user.tag
            if key != line.listed:
                heapq.heappop(heap)
            elif tag > key:
                line.listed = tag
                heapq.heapreplace(heap, (tag, self.next(), line))
            else:
                return line.first()

    def __iter__(self) -> Iterator[Account]:
        """Go over all that wait, in no order."""
        for line in list(self._lines.values()):
            yield from line.accounts()

    def check(self) -> None:
        """Assert what must hold."""
        assert self.count == sum(line.count for line in self._lines.values())
        for user, line in self._lines.items():
            assert line.user is user and line in user.lines and line.count
            assert len({each[2] for each in line.heap if each[2].line is line}) == line.count
            assert any(each[0] == line.listed and each[2] is line for each in self._heap)
            assert user.tag >= line.listed - 2 * SLACK_S * user.per


class Sharing:
    """All users and clusters, and who of them is next.

    Those that wait are either ``ready``: nothing is known of what they can use, or ``blocked``:
    there was no room for them anywhere, and only a place that has become free since can help.
    With the policy FIFO all that counts is which cluster was opened first.
    """

    def __init__(self, policy: str, weights: Mapping[str, float]) -> None:
        self.is_fifo = policy == FIFO
        self.ready = Queue()
        self.blocked = Queue()
        self.clock = 0.0  # among the users
        self.users: dict[str, User] = {}
        self.look_at = 0.0  # when `look` is due
        self.cpus = 1  # of all nodes
        self._guess_s = START_S  # how long jobs take of which nothing is known: as others
        self._weights = weights

    def join(self, account: Account, cluster: Cluster) -> None:
        """Have a cluster wait; it starts at the clock, wherever it was before."""
        name = "" if self.is_fifo else cluster.client.user
        user = self.users.get(name)
        if user is None:
            user = self.users[name] = User(name, self.weight_of(name), self.clock)
        account.cluster = cluster
        if account.user is not user:
            account.user, account.tag = user, 0.0
            account.weight = self.weight_of_cluster(cluster)
            account.per = 1.0 / account.weight
        account.blocked = account.narrow = False
        if not account.measured:
            account.est_s = self._guess_s
        if self.is_fifo:
            account.per = user.per = 0.0
            account.tag = float(cluster.id)
        else:
            account.tag = max(account.tag, user.clock)
            if not user.lines:
                user.tag = max(user.tag, self.clock)
        self.ready.add(account)

    def weight_of(self, name: str) -> float:
        """Return a user's weight: under the whole name, or under that before the "@"."""
        login = name.partition("@")[0]
        return _sane(self._weights.get(name, self._weights.get(login, 1.0)))

    def weight_of_cluster(self, cluster: Cluster) -> float:
        """Return a cluster's weight beside its user's others."""
        return _sane(cluster.opened.weight)

    def weight_at_nodes(self, cluster: Cluster) -> float:
        """Return a cluster's weight beside those of all users, for the work that nodes hold."""
        return self.weight_of(cluster.client.user) * self.weight_of_cluster(cluster)

    def leave(self, account: Account) -> None:
        """Have a cluster wait no longer."""
        assert account.line is not None
        account.line.queue.remove(account)
        account.blocked = account.narrow = False
        account.cluster = None  # it may be closed long before the last entry of it is dropped

    def next(self, also_blocked: bool) -> Account | None:
        """Return the account that is to be served next."""
        one = self.ready.first() if self.ready.count else None
        other = self.blocked.first() if also_blocked else None
        if one is None or other is None:
            return one or other
        assert one.user is not None and other.user is not None
        if one.user is other.user:
            return one if one.tag <= other.tag else other
        return one if one.user.tag <= other.user.tag else other

    def served(self, account: Account, tag: float, user_tag: float) -> None:
        """Note that an account was served when the tags were these."""
        user = account.user
        if user is None or self.is_fifo:
            return
        if tag > user.clock:
            user.clock = tag
        if user_tag > self.clock:
            self.clock = user_tag

    def block(self, account: Account, narrow: bool) -> None:
        """There was no room for an account's jobs. Too far behind, it is moved up.

        That comes of nodes that it can't use, and it isn't paid back for that.
        """
        user = account.user
        assert user is not None
        account.blocked, account.narrow = True, narrow
        if not self.is_fifo:
            lag = LAG_S * self.cpus
            account.tag = max(account.tag, user.clock - lag * account.per)
            user.tag = max(user.tag, self.clock - lag * user.per)
        self.blocked.add(account)

    def unblock(self, account: Account) -> None:
        """There may be room for an account, or it has other jobs than before."""
        self.blocked.remove(account)
        account.blocked = account.narrow = False
        self.ready.add(account)

    def look(self, active: list[tuple[Account, int]], cpus: int, now: float) -> None:
        """Count what runs, of all clusters with jobs and so many of them at nodes.

        The clocks go on to the lowest tags, so that nobody pays for CPUs that nobody wanted.
        """
        self.look_at = now + LOOK_S
        self.cpus = max(1, cpus)
        lowest: dict[User, float] = {}
        known = [account.est_s for account, _ in active if account.measured]
        if known:
            self._guess_s = max(START_S, sum(known) / len(known))
        for account, held in active:
            user = account.user
            if user is None:
                continue
            if account.started:
                account.settle(held, now)
            lowest[user] = min(lowest.get(user, math.inf), account.tag)
        if self.is_fifo or not lowest:
            return
        for user, tag in lowest.items():
            user.clock = max(user.clock, tag)
        self.clock = max(self.clock, min([user.tag for user in lowest]))
        if len(self.users) > 2 * len(lowest) + 64:
            self.users = {user.name: user for user in lowest}

    def check(self) -> None:
        """Assert what must hold."""
        self.ready.check()
        self.blocked.check()


def _sane(weight: float) -> float:
    """Return a weight that can be used, whatever was said."""
    return min(max(weight, WEIGHT_MIN), WEIGHT_MAX) if math.isfinite(weight) else 1.0
