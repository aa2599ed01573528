"""Classes and functions of the program, by the names that lead to them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

MAIN = "__main__"  # the program itself

Names: TypeAlias = "dict[str, dict[str, object]]"  # of modules: what is defined there
Sent: TypeAlias = "dict[tuple[str, str], object]"  # module and name: what nodes have there


class Definition(NamedTuple):
    """A class or function that can be found by its name."""

    thing: object
    module: str
    top: str  # the first part of its name
    owner: object  # what has that name: itself, or the class around it


def definition_of(thing: Any) -> Definition | None:
    """Return where a class or function is defined, if its name still leads to it."""
    module, name = getattr(thing, "__module__", None), getattr(thing, "__qualname__", "")
    if not isinstance(module, str) or module not in sys.modules:
        return None
    top, *rest = str(name).split(".")
    owner = found = vars(sys.modules[module]).get(top)
    for part in rest:
        found = getattr(found, part, None)
    return Definition(thing, module, top, owner) if found is thing else None


def names_for(definitions: Iterable[Definition]) -> Names:
    """Put definitions under their modules and names."""
    names: Names = {}
    complete(names, definitions)
    return names


def complete(names: Names, definitions: Iterable[Definition]) -> bool:
    """Add what isn't there; return whether there was anything new.

    The packages around a module are named too: nodes must have them to find it.
    """
    new = False
    for definition in definitions:
        for package in packages_around(definition.module):
            names.setdefault(package, {})
        things = names.setdefault(definition.module, {})
        new = new or definition.top not in things
        things.setdefault(definition.top, definition.owner)
    return new


def packages_around(module: str) -> list[str]:
    """Name the packages that a module lies in, the outermost first."""
    parts = module.split(".")
    return [".".join(parts[:depth]) for depth in range(1, len(parts))]
