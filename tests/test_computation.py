"""Code on its way to nodes: real programs pack it, fresh processes that lack it load it.

`NODE` follows the formats of `dispy.protocol.payload`, in as few lines as they allow.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dispy.blobs import BlobSource
from dispy.computation import Packed, pack
from dispy.pickling import PicklingError
from dispy.protocol.messages import BlobRange

PROGRAM = """
import marshal, sys
from dispy import computation, depends
from dispy.protocol.messages import BlobRange

steps = []

def content(packed):
    return packed.payload, [part.tobytes() for part in packed.parts]

def define(layers):
    for layer in layers:
        steps.append(("layer", content(layer.pickled), layer.source, layer.by_name))

def begin(*args):
    global packed
    packed = computation.pack(*args)
    for file in packed.spec.files:
        piece = packed.blobs.read(BlobRange(file.digest, 0, file.size))
        assert not piece.error, piece.error
        steps.append(("file", file.path, piece.data))
    define(packed.spec.layers)

def job(*args, depends_on=(), **kwargs):
    found = depends.read_job_depends(depends_on, packed.blobs)
    dumped = packed.vocabulary.dump_with(args, kwargs, found.code, define)
    steps.append(("job", content(dumped)))

def end():
    with open(sys.argv[1], "wb") as file:
        marshal.dump(steps, file)

"""

NODE = """
import importlib, marshal, os, pickle, sys, types

steps = marshal.load(open(sys.argv[1], "rb"))
by_source = sys.argv[2:] == ["source"]
main = sys.modules["__main__"] = types.ModuleType("__main__")
sys.path.insert(0, os.getcwd())

def load(payload, parts=()):
    payload, *parts = [payload, *parts] if payload else parts
    flags = payload[1 : 1 + payload[0]]
    buffers = [bytes(part) if flag else bytearray(part) for flag, part in zip(flags, parts)]
    return pickle.loads(payload[1 + len(flags) :], buffers=buffers)

def define(names):
    for module, things in names.items():
        if module not in sys.modules:
            sys.modules[module] = types.ModuleType(module)
        for name, thing in things.items():
            setattr(sys.modules[module], name, thing)

functions = []
for kind, *step in steps:
    if kind == "file":
        os.makedirs(os.path.dirname(step[0]) or ".", exist_ok=True)
        open(step[0], "wb").write(step[1])
    elif kind == "layer":
        if by_source:
            assert step[1], "there is no source"
            exec(step[1], main.__dict__)
        names, *found = load(step[2]) if by_source else load(*step[0])
        define(names)
        if "init_depends" in vars(main):
            main.init_depends()
        if found[1]:
            found[1]()
        functions = functions or found
    else:
        args, kwargs, *names = load(*step[0])
        for definitions in names:
            define(definitions)
        print(functions[0](*args, **kwargs))
        for module, definitions in (names[0] if names else {}).items():
            for name in definitions:
                delattr(sys.modules[module], name)
"""

Run = Callable[..., list[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Return what runs a program's text, then a node, and returns what its jobs returned."""
    return partial(run_program, tmp_path)


def run_program(
    folder: Path, text: str, *more: str, files: dict[str, str] | None = None
) -> list[str]:
    client, node = folder / "client", folder / "node"
    client.mkdir()
    node.mkdir()
    for name, content in (files or {}).items():
        path = client / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(textwrap.dedent(content))
    (client / "program.py").write_text(PROGRAM + textwrap.dedent(text) + "\nend()\n")
    execute([sys.executable, "program.py", "../steps"], client)
    return execute([sys.executable, "-c", NODE, "../steps", *more], node).splitlines()


def execute(command: list[str], folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- functions and what they share -------------------------------------------------------------


def test_setup_and_computation_share_the_variables_of_the_program(run: Run) -> None:
    text = """
        data = None

        def setup(first):
            global data, math
            data = [first, 2]
            import math
            return 0

        def length(x):
            return len(data) + x

        def compute(function, x):
            return function(x) + data[0] + math.floor(2.5) + len(globals()["data"])

        import functools
        begin(compute, [], functools.partial(setup, 1))
        job(length, 10)  # arrives after setup, and must not undo what that did
        job(lambda x: len(data) + x, 20)
    """
    assert run(text) == ["17", "27"]


def test_what_a_program_defines_goes_by_name(run: Run) -> None:
    text = """
        import collections, enum, functools
        from dataclasses import dataclass

        class Color(enum.Enum):
            RED = 1

        @dataclass
        class Point:
            x: int

            def double(self):
                return Point(self.x * FACTOR)

        class Outer:
            class Inner:
                value = 3

        Pair = collections.namedtuple("Pair", "a b")
        FACTOR = 2

        @functools.lru_cache(maxsize=3)
        def fibonacci(n):
            return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

        class Base:
            def name(self):
                return "base"

        class Derived(Base):
            def name(self):
                return "derived of " + super().name()

        def compute(check, *args):
            return check(*args)

        begin(compute)
        job(lambda color: color is Color.RED, Color.RED)
        job(lambda point: point.double() == Point(6) and type(point) is Point, Point(3))
        job(lambda method: method() == Point(4), Point(2).double)
        job(lambda inner, outer: inner.value + isinstance(inner, outer.Inner), Outer.Inner(), Outer)
        job(lambda pair: pair + Pair(3, 4), Pair(1, 2))
        job(fibonacci, 20)
        job(lambda f: f(20) + f.cache_info().maxsize, fibonacci)
        job(lambda one, base: isinstance(one, base) and one.name(), Derived(), Base)
        assert len(steps[-1][1][0]) < 1000
    """
    expected = ["True", "True", "True", "4", "(1, 2, 3, 4)", "6765", "6768", "derived of base"]
    assert run(text) == expected


def test_code_is_sent_once(run: Run) -> None:
    text = """
        class Point:
            def __init__(self, x):
                self.x = x

        def compute(point):
            return point.x

        begin(compute)
        for x in range(3):
            job(Point(x))
        kinds = [step[0] for step in steps]
        assert kinds == ["layer", "layer", "job", "job", "job"], kinds
        assert len(steps[-1][1][0]) < 80
    """
    assert run(text) == ["0", "1", "2"]


def test_a_class_in_depends_needs_no_layer_of_its_own(run: Run) -> None:
    text = """
        class Point:
            x = 5

        def compute(point):
            return point.x

        begin(compute, [Point()])
        job(Point())
        assert [step[0] for step in steps] == ["layer", "job"]
    """
    assert run(text) == ["5"]


def test_a_class_that_is_defined_anew_is_another_one(run: Run) -> None:
    text = """
        def make(value):
            class Point:
                x = value
            Point.__qualname__ = "Point"
            return Point

        def compute(point):
            return point.x, type(point) is Point

        Point = make(1)
        begin(compute)
        old = Point()
        job(old)
        Point = make(2)
        job(Point())
        job(old)
    """
    assert run(text) == ["(1, True)", "(2, True)", "(1, False)"]


def test_a_variable_that_was_changed_travels_with_what_needs_it(run: Run) -> None:
    text = """
        factor = 1

        def compute(function):
            return function()

        begin(compute)
        for factor in 2, 3:
            job(lambda: factor * 10)
    """
    assert run(text) == ["20", "30"]


def test_methods_partials_and_objects(run: Run) -> None:
    text = """
        import functools

        class Scale:
            def __init__(self, factor):
                self.factor = factor

            def apply(self, x):
                return self.factor * x

        begin(functools.partial(Scale(3).apply))
        job(4)
        job("x")
    """
    assert run(text) == ["12", "xxx"]


# -- depends -------------------------------------------------------------------------------------


def test_functions_in_depends_are_found_by_name(run: Run) -> None:
    text = """
        from tasks import triple

        def double(x):
            return 2 * x

        def init_depends():
            global started
            started = True

        def compute(name, x):
            return globals()[name](x), started

        begin(compute, [double, triple, init_depends])
        job("double", 2)
        job("triple", 2)
    """
    assert run(text, files={"tasks.py": "def triple(x):\n    return 3 * x\n"}) == [
        "(4, True)",
        "(6, True)",
    ]


def test_functions_of_one_job_are_gone_after_it(run: Run) -> None:
    text = """
        class Point:
            x = 7

        def double(x):
            return x.x * 2

        def other():
            return double

        def compute(name, *args):
            return globals()[name](*args) if name in globals() else "gone"

        begin(compute)
        job("double", Point(), depends_on=[double, other, Point])
        job("double")
        job("Point")
        job("double", Point(), depends_on=[double])
    """
    assert run(text) == ["14", "gone", "gone", "14"]


def test_modules_in_depends_and_others_that_are_used_go_as_files(run: Run) -> None:
    text = """
        import package.sub
        import plain
        from package.other import Other

        def compute(x):
            import plain as again
            return plain.f(x), again is plain, package.sub.f(x), Other.__module__, type(x) is Other

        begin(compute, [plain])
        job(1)
        job(Other())
        places = sorted(step[1] for step in steps if step[0] == "file")
        assert places == [
            "beneath.py",
            "package/__init__.py",
            "package/other.py",
            "package/sub.py",
            "package/unused.py",
            "plain.py",
        ], places
    """
    files = {
        "plain.py": "import beneath\n\ndef f(x):\n    return beneath.f(x)\n",
        "beneath.py": "def f(x):\n    return 'beneath'\n",
        "package/__init__.py": "",
        "package/sub.py": "from .other import Other\n\ndef f(x):\n    return 'sub'\n",
        "package/other.py": "class Other:\n    pass\n",
        "package/unused.py": "",
    }
    assert run(text, files=files) == [
        "('beneath', True, 'sub', 'package.other', False)",
        "('beneath', True, 'sub', 'package.other', True)",
    ]


def test_a_function_of_another_module_brings_its_surroundings(run: Run) -> None:
    text = """
        import work
        begin(work.compute, [], work.setup)
        job(work.Thing())
        job(work.Thing())
        assert [step[0] for step in steps] == ["layer", "job", "job"]
    """
    work = """
        import sys
        data = None

        class Thing:
            pass

        def setup():
            global data
            data = "set up"

        def compute(thing):
            there = sys.modules["work"]
            return data, type(thing) is Thing is there.Thing, hasattr(there, "__file__")
    """
    assert run(text, files={"work.py": work}) == ["('set up', True, False)"] * 2


@pytest.mark.parametrize("form", [(), ("source",)])
def test_a_function_inside_a_package_brings_what_it_uses_of_it(
    run: Run, form: tuple[str, ...]
) -> None:
    text = """
        from package.work import Thing, compute
        begin(compute)
        job(Thing())
        job(Thing())
        assert [step[0] for step in steps] == ["layer", "job", "job"]
    """
    files = {
        "package/__init__.py": "",
        "package/work.py": """
            from .other import name_of

            class Thing:
                pass

            def compute(thing):
                import pickle
                again = pickle.loads(pickle.dumps(thing))  # as results go, by reference
                return name_of(thing), type(again) is Thing, __package__ or ""
        """,
        "package/other.py": """
            def name_of(thing):
                return type(thing).__module__
        """,
    }
    package = "" if form else "package"
    assert run(text, *form, files=files) == [f"('package.work', True, '{package}')"] * 2


def test_classes_of_a_module_that_turns_up_later(run: Run) -> None:
    text = """
        def compute(thing):
            return thing.name(), type(thing).__module__

        begin(compute)
        import late
        job(late.Thing())
        job([late.Thing()][0])
        assert [step[0] for step in steps] == ["layer", "layer", "job", "job"]
    """
    late = """
        NAME = "late"

        class Thing:
            def name(self):
                return NAME
    """
    assert run(text, files={"late.py": late}) == ["('late', 'late')"] * 2


# -- other versions of Python --------------------------------------------------------------------

BY_SOURCE = """
    import functools
    import math as mathematics
    from os.path import basename

    import helpers

    FACTOR = 3
    state = None

    class Base:
        def factor(self):
            return FACTOR

    class Scale(Base):
        def apply(self, x):
            return helpers.double(x) * self.factor() + mathematics.floor(state)

    @functools.lru_cache
    def cached(x):
        return x

    def setup():
        global state
        state = 1.5

    def compute(x):
        if x > 3:
            return compute(3)
        return Scale().apply(cached(x)), basename("a/b"), isinstance(x, Point)

    class Point(int):
        pass

    begin(compute, [], setup)
    job(5)
    job(Point(2))
"""


@pytest.mark.parametrize("form", [(), ("source",)])
def test_code_travels_as_source_as_well(run: Run, form: tuple[str, ...]) -> None:
    helpers = {"helpers.py": "def double(x):\n    return 2 * x\n"}
    expected = ["(19, 'b', False)", "(13, 'b', True)"]
    assert run(BY_SOURCE, *form, files=helpers) == expected


def test_source_of_another_module(run: Run) -> None:
    text = """
        import work
        begin(work.compute)
        job(work.Thing())
    """
    work = """
        from __future__ import annotations

        class Thing:
            def name(self: Nowhere) -> str:
                return __name__

        def compute(thing):
            return type(thing) is Thing, thing.name(), Thing.__module__
    """
    assert run(text, "source", files={"work.py": work}) == ["(True, '__main__', 'work')"]


LOCK = __import__("threading").Lock()


def uses_lock() -> object:
    return LOCK.locked


def closure(factor: int) -> Callable[[int], int]:
    return lambda x: x * factor


def test_what_has_no_source_has_none() -> None:
    for function in (lambda: 1, closure(2), partial(closure(3), 1)):
        (layer,) = pack(function).spec.layers
        assert layer.source == "" and layer.by_name == b""
    with pytest.raises(PicklingError, match=r"uses_lock\.<global LOCK>: _thread\.lock"):
        pack(uses_lock)


def test_where_source_works_functions_of_the_test_have_it() -> None:
    (layer,) = pack(closure).spec.layers
    assert layer.python == f"{sys.version_info.major}.{sys.version_info.minor}"
    assert "def closure(factor: int)" in layer.source and layer.by_name


# -- what can be given ---------------------------------------------------------------------------


def test_names_for_people() -> None:
    assert pack(partial(pow, 2)).name == "pow"
    assert pack(closure(2)).name == "<lambda>"
    assert pack(str.upper).name == "upper"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((3,), "computation must be a function or another callable"),
        ((None,), "computation must be"),
        ((len, [], 3), "setup must be a function"),
        ((len, [], None, "yes"), "cleanup must be True, False or a function"),
        ((len, [], None, None), "cleanup must be"),
        ((len, "file"), "depends must be a list"),
        ((len, 3), "depends must be a list"),
        ((len, [len, 2, 3]), r"depends\[0\] must be"),
        ((len, [closure, None]), r"depends\[1\] must be"),
        ((len, [lambda: 1]), r"depends\[0\] is a lambda"),
    ],
)
def test_what_is_no_computation(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        pack(*arguments)


def test_cleanup_is_told() -> None:
    assert pack(len).spec.cleanup is True
    assert pack(len, [], None, False).spec.cleanup is False
    assert pack(len, [], None, closure).spec.cleanup is True


# -- programs ------------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def program(path: Path, text: str, mode: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def text_of(packed: Packed) -> str:
    (file,) = packed.spec.files
    return packed.blobs.read(BlobRange(file.digest, 0, file.size)).data.decode()


def test_a_program_is_a_file(here: Path) -> None:
    program(here / "bin" / "script", "#!/bin/sh\n", 0o600)
    packed = pack("bin/script")
    assert packed.is_program and packed.name == "script" and packed.spec.layers == []
    (file,) = packed.spec.files
    assert packed.spec.program == file.path == "bin/script" and file.mode == 0o700
    assert text_of(packed) == "#!/bin/sh\n"
    assert pack(here / "bin" / "script").spec.program == "bin/script"


def test_a_python_program_need_not_be_executable(here: Path) -> None:
    program(here / "script.py", "print(1)\n", 0o644)
    assert pack("script.py").spec.files[0].mode == 0o644


def test_a_program_on_path(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = here / "elsewhere"
    program(elsewhere / "tool", "#!/bin/sh\n", 0o755)
    monkeypatch.setenv("PATH", f"{elsewhere}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir("/")
    packed = pack("tool")
    assert packed.spec.program == "tool" or packed.spec.program.endswith("elsewhere/tool")
    assert packed.spec.files[0].mode == 0o755
    with pytest.raises(FileNotFoundError):
        pack(Path("tool"))  # that is a file here, or nothing


def test_setup_of_a_program(here: Path) -> None:
    program(here / "run.py", "", 0o644)
    (layer,) = pack("run.py", [], closure).spec.layers
    assert layer.pickled.payload


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("", ValueError, "empty"),
        ("nowhere", FileNotFoundError, "nowhere"),
        ("folder", ValueError, "'folder' is not a file"),
        ("text", PermissionError, "chmod"),
    ],
)
def test_what_is_no_program(here: Path, name: str, error: type[Exception], message: str) -> None:
    (here / "folder").mkdir()
    program(here / "text", "hello", 0o644)
    with pytest.raises(error, match=message):
        pack(name)


def test_arguments_of_a_program_are_texts(here: Path) -> None:
    program(here / "run.py", "", 0o644)
    vocabulary = pack("run.py").vocabulary
    from dispy.pickling import load

    dumped = vocabulary.dump((1, b"\xff", Path("x"), "y"), {}, lambda layers: None)
    assert load(*dumped) == (("1", "\udcff", "x", "y"), {})
    with pytest.raises(TypeError, match="'name'"):
        vocabulary.dump((), {"name": 1}, lambda layers: None)
    with pytest.raises(ValueError, match=r"args\[1\].*NUL"):
        vocabulary.dump((1, "a\0"), {}, lambda layers: None)


def test_a_limit_on_files(here: Path) -> None:
    program(here / "run.py", "print()", 0o644)
    with pytest.raises(ValueError, match=r"run\.py.*7 bytes.*allows 6"):
        pack("run.py", max_file_size=6)
    assert isinstance(pack("run.py", max_file_size=7).blobs, BlobSource)


def test_the_registry_is_left_as_it_was() -> None:
    import cloudpickle

    before = cloudpickle.list_registry_pickle_by_value()
    pack(closure)
    assert cloudpickle.list_registry_pickle_by_value() == before
