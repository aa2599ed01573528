"""Which part of an object can't be pickled: the path to it, for an error message.

Follows what pickle would: containers, attributes, slots, what reducing gives, and the
variables of functions. It runs only after pickling has failed, and gives up searching after
`TESTS_MAX` tries; the path found so far is then still right, only shorter.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType, MethodType
from typing import Any, NamedTuple

TESTS_MAX = 2_000
DEPTH_MAX = 50
REPR_MAX = 40  # characters of a key in a path

Child = tuple[str, object]


class Culprit(NamedTuple):
    """Where it is and what it is."""

    path: str
    kind: str

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}"


def find_culprit(roots: Sequence[Child], can_pickle: Callable[[object], bool]) -> Culprit | None:
    """Return the innermost thing in one of ``roots`` that ``can_pickle`` denies.

    None if every root can be pickled by itself.
    """
    budget = iter(range(TESTS_MAX))
    found = _first_bad(roots, can_pickle, budget)
    if found is None:
        return None
    path, value = found
    for _ in range(DEPTH_MAX):
        deeper = _first_bad(_children(value), can_pickle, budget)
        if deeper is None:
            break
        path, value = path + deeper[0], deeper[1]
    return Culprit(path, _type_name(value))


def _first_bad(
    children: Sequence[Child] | Iterator[Child],
    can_pickle: Callable[[object], bool],
    budget: Iterator[int],
) -> Child | None:
    for child in children:
        if next(budget, None) is None:
            return None
        if not can_pickle(child[1]):
            return child
    return None


def _children(value: object) -> list[Child]:
    """What ``value`` is made of, each with the text that leads from it there."""
    if isinstance(value, MethodType):
        return [(".__self__", value.__self__), (".__func__", value.__func__)]
    if isinstance(value, FunctionType):
        return list(_variables(value))
    if type(value) in (list, tuple):
        return [(f"[{i}]", item) for i, item in enumerate(value)]  # type: ignore[arg-type, var-annotated]
    if type(value) in (set, frozenset):
        return [("{...}", item) for item in value]  # type: ignore[attr-defined]
    if type(value) is dict:
        return [*_keys(value), *_items(value)]
    if isinstance(value, type):
        return [(f".{name}", item) for name, item in vars(value).items() if name[:2] != "__"]
    return list(_reduced(value))


def _variables(function: FunctionType) -> Iterator[Child]:
    """What a function refers to: closure, globals, defaults."""
    try:
        outer = inspect.getclosurevars(function)
    except (TypeError, ValueError):  # an unfilled cell
        return
    yield from ((f".<closure {name}>", value) for name, value in outer.nonlocals.items())
    yield from ((f".<global {name}>", value) for name, value in outer.globals.items())
    for i, value in enumerate(function.__defaults__ or ()):
        yield f".__defaults__[{i}]", value
    yield from _attributes(function.__kwdefaults__ or {})
    yield from _attributes(vars(function))


def _reduced(value: object) -> Iterator[Child]:
    """What pickle would make of an object: its state and, if it is a container, its items."""
    try:
        reduced: Any = value.__reduce_ex__(2)
    except Exception:  # whatever it raises: it is the culprit itself
        return
    if not isinstance(reduced, tuple):  # the name of a global
        return
    args, state, items, pairs = (*reduced[1:5], None, None, None, None)[:4]
    yield from _state(state)
    yield from ((f"[{i}]", item) for i, item in enumerate(items or ()))
    yield from ((f"[{_short(key)}]", item) for key, item in pairs or ())
    if isinstance(args, tuple):
        yield from ((f".__reduce__()[{i}]", item) for i, item in enumerate(args))


def _state(state: Any) -> Iterator[Child]:
    if isinstance(state, dict):
        yield from _attributes(state)
    elif isinstance(state, tuple) and len(state) == 2 and isinstance(state[1], dict):
        yield from _state(state[0])  # the attributes of a class with slots
        yield from _attributes(state[1])
    elif state is not None:
        yield ".__getstate__()", state


def _attributes(state: dict[Any, object]) -> Iterator[Child]:
    return ((f".{name}", value) for name, value in state.items())


def _keys(value: dict[Any, object]) -> Iterator[Child]:
    return ((f".key({_short(key)})", key) for key in value)


def _items(value: dict[Any, object]) -> Iterator[Child]:
    return ((f"[{_short(key)}]", item) for key, item in value.items())


def _short(key: object) -> str:
    try:
        text = repr(key)
    except Exception:  # a user's __repr__ must not hide the real error
        text = f"<{_type_name(key)}>"
    return text if len(text) <= REPR_MAX else text[: REPR_MAX - 3] + "..."


def _type_name(value: object) -> str:
    kind = type(value)
    if kind.__module__ == "builtins":
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"
