"""What the pickle of a function refers to at the node: a few ways to put things together again.

cloudpickle has the same and much more. Each process that is forked with it loaded costs a tenth
more, and most computations consist of functions only, so these go without it.
"""

from __future__ import annotations

import builtins
import types
from typing import Any

Function = types.FunctionType


def make_function(
    code: types.CodeType, space: dict[str, Any], closure: tuple[types.CellType, ...] | None
) -> Function:
    """Make a function with these globals and, for now empty, cells."""
    space.setdefault("__builtins__", builtins)
    return types.FunctionType(code, space, None, None, closure)


def set_state(function: Function, state: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """Give a function its attributes, the globals that it needs, and what is in its cells."""
    attributes, special = state
    special.pop("__dispy_submodules__")  # was there to be imported
    function.__dict__.update(attributes)
    function.__globals__.update(special.pop("__globals__"))
    for cell, filled in zip(
        function.__closure__ or (), special.pop("__closure__") or (), strict=True
    ):
        try:
            cell.cell_contents = filled.cell_contents
        except ValueError:  # an empty one
            continue
    for name, value in special.items():
        setattr(function, name, value)


def make_cell(*contents: Any) -> types.CellType:
    """Make a cell: empty, or with one thing in it."""
    return types.CellType(*contents)


def builtin_type(name: str) -> Any:
    """Return one of the types that only the module `types` has a name for."""
    return getattr(types, name)
