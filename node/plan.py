"""What a template is to make of itself, as `planning` writes it and the template reads it.

Plain values only, since they travel as marshal through a file in memory: first the plan, then
the pickled objects that it counts, each with its buffers, one after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class FileEntry(NamedTuple):
    """A file to be placed, whose content is in the store."""

    path: str  # below the folder, as it came: to be checked by its parts
    blob: str  # the name of the store's file
    size: int
    mode: int
    mtime: float

    def plain(self) -> tuple[str, str, int, int, float]:
        """Return it as a value without a type of its own."""
        return self.path, self.blob, self.size, self.mode, self.mtime


class LayerEntry(NamedTuple):
    """A layer of code: see `messages.Code`."""

    python: str
    source: str
    by_name: bytes
    sizes: list[int]  # of the pickled object, and its buffers


class Plan(NamedTuple):
    """All that a template is told before it loads the computation."""

    name: str
    folder: str  # of the computation; jobs begin there
    own: bool  # the folder is new, and of nobody else
    above: str  # where the parts of the folder's name begin that came from outside
    jobs: str  # folder for the folders of jobs
    blobs: str  # folder of the store
    names: dict[str, str]  # that jobs find
    layers: Sequence[LayerEntry]
    setup_args: list[int]  # sizes, as of a layer; empty: none
    files: Sequence[FileEntry]
    program: str
    removes: bool  # the files, at the end
    client_shutdown: bool
    max_file_size: int  # bytes of a file that a job may send; 0: no limit

    def plain(self) -> tuple[object, ...]:
        """Return it as values without types of their own."""
        layers = [tuple(layer) for layer in self.layers]
        files = [file.plain() for file in self.files]
        return tuple(self._replace(layers=layers, files=files))  # type: ignore[arg-type]

    @classmethod
    def typed(cls, plain: Sequence[object]) -> Plan:
        """Undo `plain`."""
        plan = cls(*plain)  # type: ignore[arg-type]
        layers = [LayerEntry(*layer) for layer in plan.layers]
        return plan._replace(layers=layers, files=[FileEntry(*file) for file in plan.files])
