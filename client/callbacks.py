"""The one thread of the process in which users' callbacks run.

In order, one at a time, and never in the thread that does the network's work. What a callback
raises is logged and survived. A callback that waits for jobs lets others be called meanwhile,
since a job may in its turn wait for one.
"""

from __future__ import annotations

import inspect
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .log import logger

Work = tuple["Listener", Callable[..., Any], tuple[Any, ...]]

DEPTH_MAX = 8  # of callbacks that wait inside others
LOOK_S = 0.02  # how often such a callback looks whether what it waits for has come


class Listener:
    """A cluster's right to call back, until it is made ``silent``."""

    def __init__(self) -> None:
        self.silent = False

    def post(self, function: Callable[..., Any], *args: object) -> None:
        """Have ``function(*args)`` called in the callback thread."""
        _start()
        _work.put((self, function, args))

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until all that was posted so far has been called; False if that took too long.

        Called in a callback, it doesn't wait for that one and those that it is called inside.
        """
        if _thread is None:
            return True
        if is_here() and _depth >= DEPTH_MAX:
            return False  # nobody is left to call them
        passed = threading.Event()
        if is_here():
            _work.put((Listener(), passed.set, ()))
            return serve_until(passed.is_set, timeout_s)
        _work.put((Listener(), _pass, (passed,)))
        return passed.wait(timeout_s)


_work: queue.SimpleQueue[Work] = queue.SimpleQueue()
_thread: threading.Thread | None = None
_lock = threading.Lock()
_depth = 0  # how many callbacks wait; only the thread itself uses this and the next
_passed: list[threading.Event] = []  # to be set when none of them waits any more


def is_here() -> bool:
    """Whether this is the callback thread."""
    return threading.current_thread() is _thread


def serve_until(done: Callable[[], bool], timeout_s: float | None) -> bool:
    """In the callback thread: call what is posted until ``done``; False if it took too long."""
    global _depth
    until = None if timeout_s is None else time.monotonic() + timeout_s
    _depth += 1
    try:
        while not done():
            if until is not None and time.monotonic() >= until:
                return False
            _serve_one()
    finally:
        _depth -= 1
    return True


def call(function: Callable[..., Any], *args: object) -> None:
    """Call a user's function; log what it raises."""
    try:
        function(*args)
    except BaseException:  # also SystemExit, which would end the thread, and nobody called later
        name = getattr(function, "__qualname__", function)
        logger.exception("the callback %s raised an exception", name)


def check_callback(name: str, function: object, count: int) -> None:
    """Raise `TypeError` unless ``function`` is None or takes ``count`` arguments."""
    if function is None:
        return
    what = f"{name} must be a function of {count} argument{'s' * (count > 1)}"
    if not callable(function):
        raise TypeError(f"{what}, not {function!r}")
    try:
        signature = inspect.signature(function)
    except ValueError:  # a builtin that doesn't tell
        return
    try:
        signature.bind(*range(count))
    except TypeError as error:
        raise TypeError(f"{what}, but {function!r} takes {signature}: {error}") from None


def forget() -> None:
    """In a forked child, which has no such thread."""
    global _work, _thread, _lock, _depth
    _work, _thread, _lock, _depth = queue.SimpleQueue(), None, threading.Lock(), 0
    _passed.clear()


def _start() -> None:
    global _thread
    if _thread is None:
        with _lock:
            if _thread is None:
                _thread = threading.Thread(target=_run, name="dispy-callbacks", daemon=True)
                try:
                    _thread.start()
                except RuntimeError:  # the system has no more threads: perhaps later
                    _thread = None
                    raise


def _run() -> None:
    work = _work
    while True:
        _do(work.get())
        while _passed:
            _passed.pop().set()


def _pass(event: threading.Event) -> None:
    """Tell that all before this has been called; callbacks that wait aren't over so far."""
    if _depth:
        _passed.append(event)
    else:
        event.set()


def _serve_one() -> None:
    if _depth > DEPTH_MAX:
        threading.Event().wait(LOOK_S)
        return
    with suppress(queue.Empty):
        _do(_work.get(timeout=LOOK_S))


def _do(work: Work) -> None:
    listener, function, args = work
    if not listener.silent:
        call(function, *args)
