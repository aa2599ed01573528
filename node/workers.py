"""The job processes of the node: gives them jobs, sends them signals, tells what comes of them.

The node's loop calls these methods; what happens is told as the events of the launcher. Forking
and signals are the templates' part, who are asked for them: only a parent knows that a process
id is still its child's. Everything about one job process is `JobProcess`'s. Nothing here waits.
"""

from __future__ import annotations

import selectors
import signal
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from dispy.protocol.messages import JobRecord, JobResult, JobSpec

from .jobprocess import JobProcess, Places, Said
from .processevents import Event, Outcomes, Recorded, WorkerExited
from .readiness import READ, send, watch_write
from .templateprocess import TemplateProcess


class Workers:
    """All job processes of a node, numbered by the caller, from 1.

    The launcher shares its ``templates``, which fork them, its ``selector``, which looks after
    all connections, and its ``events``, where what happens to them takes its place.
    """

    def __init__(
        self,
        templates: dict[int, TemplateProcess],
        selector: selectors.BaseSelector,
        events: list[Event],
    ) -> None:
        self._templates = templates
        self._selector = selector
        self._events = events
        self._workers: dict[int, JobProcess] = {}

    def close(self) -> None:
        """Close our ends of all processes, which are dead; tell nothing of it."""
        for process in self._workers.values():
            process.close()
        self._workers.clear()

    # -- what is asked of them -------------------------------------------------------------

    def spawn(self, computation: int, worker: int, max_tasks: int) -> None:
        """Fork a job process for ``max_tasks`` jobs (0: any number; 1: a lane, for any number).

        It can be given jobs at once. When it can't be had, `WorkerExited` tells why.
        """
        template = self._templates.get(computation)
        if template is None or template.closed:
            self._events.append(WorkerExited(worker, 0, "its computation is not running"))
            return
        try:
            plan = template.plan
            places = Places(plan.jobs, plan.folder, plan.blobs)
            process = JobProcess(worker, computation, max_tasks, places)
        except OSError as error:
            self._events.append(WorkerExited(worker, 0, _unborn(str(error))))
            return
        self._workers[worker] = template.workers[worker] = process
        self._selector.register(process.socket, READ, partial(self._on_worker, process))
        passed = process.take_passed()
        send(self._selector, template.channel, ("spawn", worker, max_tasks), passed)

    def give(self, worker: int, jobs: Sequence[JobSpec]) -> None:
        """Hand jobs over, to be run one after the other, behind those given before.

        Jobs for a worker that is dead vanish: its `WorkerExited` doesn't count them.
        """
        process = self._workers.get(worker)
        if process is not None:
            if any([job.options is not None and job.options.files for job in jobs]):
                template = self._templates[process.computation]
                send(self._selector, template.channel, ("folders", worker, 0))
            process.give(jobs)
            self._ask_for_room(process)

    def acknowledge(self, worker: int, seq: int, attempt: int, number: int, error: str) -> None:
        """The client has dealt with the records of an attempt up to this one.

        ``error``: why it refuses the last. Nothing happens when the worker runs something else.
        """
        process = self._workers.get(worker)
        if process is not None:
            process.acknowledge(seq, attempt, number, error)
            self._ask_for_room(process)

    def follow(self, worker: int, seq: int, attempt: int) -> None:
        """Tell the output of an attempt from now on, as `Recorded`, while it runs."""
        process = self._workers.get(worker)
        if process is not None:
            process.follow(seq, attempt)

    def retire(self, worker: int) -> None:
        """End a process that has no jobs; answered by `WorkerExited` without a reason."""
        process = self._workers.get(worker)
        if process is not None:
            process.retired = True
            self._signal(process, signal.SIGKILL)

    def revoke(self, worker: int) -> int:
        """Take back the jobs that have not begun; return how many, the last ones given."""
        process = self._workers.get(worker)
        if process is None:
            return 0
        count = process.revoke()
        self._watch(process)
        return count

    def interrupt(self, worker: int) -> None:
        """Raise KeyboardInterrupt in the first job of the worker that has no result yet.

        Also SIGINT to all other processes of its group. Call `revoke` before, so that no later
        job has begun that these could belong to.
        """
        process = self._workers.get(worker)
        if process is not None:
            process.mark_interrupt()
            self._signal(process, signal.SIGINT)

    def terminate(self, worker: int) -> None:
        """SIGTERM to the worker's process group."""
        process = self._workers.get(worker)
        if process is not None:
            self._signal(process, signal.SIGTERM)

    def kill(self, worker: int) -> None:
        """SIGKILL to the worker's process group; what has left the group is killed after it."""
        process = self._workers.get(worker)
        if process is not None:
            self._signal(process, signal.SIGKILL)

    def _signal(self, process: JobProcess, signum: int) -> None:
        """Have the template send it: only a parent knows that a process id is still the child's."""
        process.signals.add(signum)
        self._send_signal(process, signum, "signal")

    def _send_signal(self, process: JobProcess, signum: int, kind: str) -> None:
        template = self._templates[process.computation]
        send(self._selector, template.channel, (kind, process.worker, int(signum)))

    # -- what happens ----------------------------------------------------------------------

    def tick(self) -> None:
        """Look after running jobs; to be called every 0.1 s or so while there are workers.

        Cuts output before it fills the memory, fetches results that wait for company, and
        repeats interrupts.
        """
        for process in self._workers.values():
            process.cut_output()
            if said := process.peek():
                self._report(process.worker, said)
            if process.is_followed:
                self._follow(process)
            if process.repeats_interrupt():
                self._send_signal(process, signal.SIGINT, "repeat")

    def _follow(self, process: JobProcess) -> None:
        if process.needs_nudge():
            self._send_signal(process, signal.SIGURG, "repeat")
        said = process.read_more_output()
        self._report(process.worker, said)
        self._watch(process)

    def _report(self, worker: int, said: list[Said]) -> None:
        """Tell what a job process has sent: results and records, in order."""
        results: list[JobResult] = []
        records: list[JobRecord] = []
        for each in said:
            if isinstance(each, JobResult):
                if not results:
                    self._events.append(Outcomes(worker, results))
                results.append(each)
                records = []
            else:
                if not records:
                    self._events.append(Recorded(worker, records))
                records.append(each)
                results = []

    def _watch(self, process: JobProcess) -> None:
        """Look what has become of a process while it was read."""
        if process.fault:
            self._give_up(process)
        elif process.silent:
            self._unwatch(process)

    def _unwatch(self, process: JobProcess) -> None:
        """Don't look at its socket any more, whether that is so already or not."""
        with suppress(KeyError):  # by number: an error that names the socket asks what that is
            self._selector.unregister(process.socket.fileno())

    def _on_worker(self, process: JobProcess, mask: int) -> None:
        if self._workers.get(process.worker) is not process or process.silent:
            return
        if mask & selectors.EVENT_WRITE:
            process.flush()
            self._ask_for_room(process)
        if mask & selectors.EVENT_READ:
            if said := process.receive():
                self._report(process.worker, said)
            self._watch(process)

    def _ask_for_room(self, process: JobProcess) -> None:
        """Be told when the process takes more, while something waits."""
        if process.unsent != process.asks_for_room and not process.silent:
            process.asks_for_room = process.unsent
            watch_write(self._selector, process.socket, process.unsent)

    def _give_up(self, process: JobProcess) -> None:
        """End a process whose bytes make no sense."""
        process.silent = True
        self._unwatch(process)
        self._signal(process, signal.SIGKILL)

    # -- how they end ----------------------------------------------------------------------

    def unborn(self, process: JobProcess, reason: str) -> None:
        """Take note that a process could not be forked."""
        self.forget(process)
        self._events.append(WorkerExited(process.worker, 0, _unborn(reason)))

    def exited(self, process: JobProcess | None, code: int, peak_kib: int) -> None:
        """Take note that a process (None: a forgotten one) has ended: report what it leaves."""
        if process is None:
            return
        self._report_results(process)
        started = process.count_started()
        reason, output = "", (b"", b"")
        if process.unfinished:
            reason, output = process.explain(code, peak_kib), process.output()
        elif code or process.fault:
            reason = process.explain(code, peak_kib)
        self.forget(process)
        self._events.append(WorkerExited(process.worker, started, reason, *output))

    def _report_results(self, process: JobProcess) -> None:
        if said := process.last_results():
            self._report(process.worker, said)

    def forget(self, process: JobProcess) -> None:
        """Close our end of a process that is dead or doomed."""
        del self._workers[process.worker]
        del self._templates[process.computation].workers[process.worker]
        self._unwatch(process)
        process.close()


def _unborn(reason: str) -> str:
    return f"a job process could not be started: {reason}"
