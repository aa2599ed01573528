"""Code as source text, for nodes with another version of Python, where that works.

It works for functions and classes at the top of a module, when what they refer to there is of
the same kind, can be imported, or is a literal. The text is executed in one namespace, which
stands for all modules that it comes from; where it doesn't work there is no text at all.
"""

from __future__ import annotations
import __future__

import ast
import inspect
import io
import pickle
import symtable
import sys
import textwrap
from collections.abc import Iterable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from dispy.protocol.payload import pack_object

from .definitions import MAIN, Definition, Names, packages_around
from .modules import top_of
from .pickling import DEFINED, PROTOCOL

LITERAL_CHARS = 10_000  # a longer one is data, not a constant
FUTURE = "from __future__ import annotations\n"
ENTER = """\
import sys as __sys__
__sys__.modules[{module!r}] = __sys__.modules["__main__"]
for __name__ in {packages!r}:
    __sys__.modules.setdefault(__name__, type(__sys__)(__name__))
__name__ = {module!r}
"""
LEAVE = '__name__ = "__main__"\n'


class NoSource(Exception):
    """There is no such form of this code."""


def write_source(
    names: Names, functions: Iterable[object], found: Iterable[Definition], by_value: Iterable[str]
) -> tuple[str, bytes]:
    """Return the definitions as text, and the functions pickled by reference to it.

    ``found`` are all definitions that the functions refer to; both are empty if there is no
    such form.
    """
    owners = [(one.module, one.top, one.owner) for one in found]
    owners += [(module, name, thing) for module in names for name, thing in names[module].items()]
    writer = _Writer({MAIN, *map(top_of, by_value)})
    try:
        for module, name, thing in owners:
            writer.add(module, name, thing)
        text = writer.text()
        compile(text, "<source>", "exec", dont_inherit=True)
        return text, _by_reference(({}, *functions), writer.things)
    except (NoSource, SyntaxError, OSError, TypeError, ValueError, RecursionError):
        return "", b""


class _Writer:
    """Collects definitions, then what these refer to, until nothing is missing."""

    def __init__(self, tops: set[str]) -> None:
        self._tops = tops
        self._places: dict[str, object] = {}  # everything by its name in the one namespace
        self._imports: list[str] = []
        self._definitions: dict[str, dict[str, str]] = {}  # of a module: texts by names
        self.things: list[object] = []

    def add(self, module: str, name: str, thing: object) -> None:
        """Take what a module has under a name."""
        if name in self._places:
            if self._places[name] is not thing:
                raise NoSource(f"{name} is two things")
            return
        self._places[name] = thing
        if isinstance(thing, ModuleType):
            self._import_module(name, thing)
        elif isinstance(thing, DEFINED):
            self._add_definition(module, name, thing)
        else:
            self._imports.append(f"{name} = {_literal(thing)}\n")

    def text(self) -> str:
        """Return all of it, in an order that works: that of the modules."""
        pieces = [FUTURE] if self._wants_annotations() else []
        pieces += sorted(self._imports)
        for module in sorted(self._definitions, key=lambda name: name == MAIN):
            pieces += self._module(module)
        return "".join(pieces)

    def _module(self, module: str) -> Iterator[str]:
        texts = self._definitions[module]
        if module != MAIN:
            yield ENTER.format(module=module, packages=packages_around(module))
        order = {name: i for i, name in enumerate(vars(sys.modules[module]))}
        for name in sorted(texts, key=lambda name: order.get(name, len(order))):
            yield texts[name]
        if module != MAIN:
            yield LEAVE

    def _import_module(self, name: str, module: ModuleType) -> None:
        if top_of(module.__name__) in self._tops:
            raise NoSource(f"{name} is a module of the program")
        self._imports.append(f"import {module.__name__}\n")
        if name != module.__name__:
            self._imports[-1] = f"import {module.__name__} as {name}\n"

    def _add_definition(self, module: str, name: str, thing: Any) -> None:
        if top_of(thing.__module__) not in self._tops:
            if "." in thing.__qualname__ or thing.__module__ == "builtins":
                raise NoSource(f"{name} can't be imported")
            self._imports.append(f"from {thing.__module__} import {thing.__qualname__} as {name}\n")
            return
        if (isinstance(thing, FunctionType) and thing.__closure__) or thing.__name__ != name:
            raise NoSource(f"{name} has a closure, or another name")
        if thing.__module__ != module or vars(sys.modules[module]).get(name) is not thing:
            module = thing.__module__
        text = textwrap.dedent(inspect.getsource(thing))
        if not text.endswith("\n"):
            text += "\n"
        self._definitions.setdefault(module, {})[name] = text
        self.things.append(thing)
        known = vars(sys.modules[module])
        for used in _globals_in(text):
            if used in known and not used.startswith("__"):
                self.add(module, used, known[used])

    def _wants_annotations(self) -> bool:
        return any(
            vars(sys.modules[module]).get("annotations") is __future__.annotations
            for module in self._definitions
        )


class _ByReference(pickle.Pickler):
    """Pickles by reference, also what another name hides, and nothing that isn't in the text."""

    def __init__(self, file: io.BytesIO, things: Iterable[object]) -> None:
        super().__init__(file, PROTOCOL)
        self._things = {id(thing) for thing in things}

    def reducer_override(self, thing: Any) -> Any:
        """Refuse code of the program that the text doesn't have."""
        if isinstance(thing, DEFINED) and thing.__module__ == MAIN:
            module = sys.modules[MAIN]
            top = vars(module).get(thing.__qualname__.partition(".")[0])
            if id(top) not in self._things:
                raise NoSource(f"{thing!r} is not in the text")
        return NotImplemented


def _by_reference(value: object, things: Iterable[object]) -> bytes:
    stream = io.BytesIO()
    try:
        _ByReference(stream, things).dump(value)
    except NoSource:
        raise
    except Exception as error:  # whatever an object raises that can't be pickled
        raise NoSource(str(error)) from None
    return pack_object((), stream.getvalue())


def _globals_in(text: str) -> set[str]:
    """Return the names in a text that are looked up in its module."""
    names: set[str] = set()
    tables = [symtable.symtable(text, "<source>", "exec")]
    while tables:
        table = tables.pop()
        top = table.get_type() == "module"
        names |= {
            symbol.get_name()
            for symbol in table.get_symbols()
            if symbol.is_referenced() and (symbol.is_global() or top)
        }
        tables += table.get_children()
    return names


def _literal(value: object) -> str:
    text = repr(value)
    if len(text) > LITERAL_CHARS:
        raise NoSource("a constant is too long")
    try:
        same = ast.literal_eval(text) == value
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        same = False
    if not same:
        raise NoSource(f"{text[:80]} is no literal")
    return text
