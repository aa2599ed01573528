"""The node's end of one template: its connection, how far it is, and the files that it leaves.

Only facts: the launcher decides, and asks `Workers` about the job processes.
"""

from __future__ import annotations

import shutil

from . import jobfolder
from .channel import Channel
from .jobprocess import JobProcess
from .plan import Plan


class TemplateProcess:
    """What the node knows of a template."""

    def __init__(self, computation: int, connection: Channel, plan: Plan) -> None:
        self.computation = computation
        self.channel = connection
        self.plan = plan
        self.paths = {file.path for file in plan.files}  # of all files that were placed
        self.inherits = False  # some of them, from an earlier set-up
        self.puts: dict[int, None] = {}  # requests that were not answered
        self.reason = ""  # why it has failed
        self.ready = False
        self.keeps = False  # its files, after it was released
        self.released = False
        self.closed = False  # it has closed its end: it is ending
        self.orphaned = False  # its zygote is dead, and won't tell of its end
        self.workers: dict[int, JobProcess] = {}

    def inherit(self, before: TemplateProcess) -> None:
        """Take over the files that an earlier template of the computation has kept."""
        self.paths |= before.paths
        self.inherits = True

    def remove(self) -> None:
        """Remove what it has left, in its place."""
        shutil.rmtree(self.plan.jobs, ignore_errors=True)
        if not self.keeps:
            self.remove_files()

    def remove_files(self) -> None:
        """Remove the computation's files; its own folder in any case, at the latest now."""
        if self.plan.own:
            shutil.rmtree(self.plan.folder, ignore_errors=True)
        elif self.plan.removes:
            jobfolder.remove_files(self.plan.above, self.plan.folder, self.paths)
