"""Writes down for a template what it is to do: its plan, and layers of code that come later.

What is written is in memory, and as `plan` says. The pickled objects are copied as they came:
nobody looks into them here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dispy.protocol.blobs import file_name
from dispy.protocol.folders import parts_of
from dispy.protocol.messages import Buffer, Code, FileSpec, JobSpec, Prepare

from . import channel
from .memoryfile import open_memory
from .plan import FileEntry, LayerEntry, Plan


class Planner(NamedTuple):
    """What all plans of a node have in common: see `Launcher`."""

    folder: Path
    names: dict[str, str]
    blobs: Path
    files: Path
    client_shutdown: bool
    max_file_size: int
    force_cleanup: bool

    def plan(self, prepare: Prepare) -> Plan:
        """Say what the template is to do. Raises `FileNameError`."""
        spec = prepare.spec
        own = not spec.dest_path
        folder = self.folder / f"computation-{prepare.computation}"
        files = {file.path: entry_of(file) for file in (*spec.files, *prepare.files)}
        return Plan(
            name=spec.name,
            folder=str(folder if own else self.files.joinpath(*parts_of(spec.dest_path))),
            own=own,
            above=str(folder if own else self.files),
            jobs=str(self.folder / f"computation-{prepare.computation}-jobs"),
            blobs=str(self.blobs),
            names=self.names,
            layers=[_entry_of_layer(code) for code in spec.layers],
            setup_args=_sizes_of(prepare.setup_args) if prepare.setup_args is not None else [],
            files=list(files.values()),
            program=spec.program,
            removes=spec.cleanup or self.force_cleanup,
            client_shutdown=self.client_shutdown,
            max_file_size=self.max_file_size,
        )


def entry_of(file: FileSpec) -> FileEntry:
    """Return a file as those see it who place it."""
    return FileEntry(file.path, file_name(file.digest), file.size, file.mode, file.mtime)


class Written(NamedTuple):
    """A plan and pickled objects, in memory."""

    descriptor: int
    plan_bytes: int


def write_plan(plan: Plan, prepare: Prepare) -> Written:
    """Write a plan and what belongs to it. Raises `OSError`, and `ValueError` if it can't be."""
    return _write(channel.pack(plan.plain()), _pickled_of(prepare))


def write_layer(layer: Code) -> Written:
    """Write a layer of code that comes later. Raises as `write_plan` does."""
    return _write(channel.pack(tuple(_entry_of_layer(layer))), [layer.pickled])


def _entry_of_layer(code: Code) -> LayerEntry:
    return LayerEntry(code.python, code.source, code.by_name, _sizes_of(code.pickled))


def _pickled_of(prepare: Prepare) -> list[JobSpec]:
    """Return the pickled objects of a computation, in the order in which its plan counts them."""
    layers = [code.pickled for code in prepare.spec.layers]
    return layers if prepare.setup_args is None else [*layers, prepare.setup_args]


def _buffers_of(pickled: JobSpec) -> list[list[Buffer]]:
    whole: list[list[Buffer]] = [part.chunks for part in pickled.parts]
    if pickled.payload or not whole:
        whole.insert(0, [pickled.payload])
    return whole


def _sizes_of(pickled: JobSpec) -> list[int]:
    """Return the sizes of a pickled object and of its buffers."""
    return [sum(map(len, chunks)) for chunks in _buffers_of(pickled)]


def _write(plan: bytes, pickled: Sequence[JobSpec]) -> Written:
    """Write a plan and the pickled objects that belong to it into memory."""
    fd = open_memory("plan", 0)
    try:
        with open(fd, "wb", closefd=False) as file:
            file.write(plan)
            for each in pickled:
                for chunks in _buffers_of(each):
                    file.writelines(chunks)
    except OSError:
        os.close(fd)
        raise
    os.lseek(fd, 0, os.SEEK_SET)
    return Written(fd, len(plan))
