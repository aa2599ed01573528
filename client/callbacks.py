"""The one thread of the process in which users' callbacks run.

In order, one at a time, and never in the thread that does the network's work. What a callback
raises is logged and survived.
"""

from __future__ import annotations

import inspect
import queue
import threading
from collections.abc import Callable
from typing import Any

from .log import logger

Work = tuple["Listener", Callable[..., Any], tuple[Any, ...]]


class Listener:
    """A cluster's right to call back, until `silence` is called."""

    def __init__(self) -> None:
        self.silent = False

    def post(self, function: Callable[..., Any], *args: object) -> None:
        """Have ``function(*args)`` called in the callback thread."""
        _start()
        _work.put((self, function, args))

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until all that was posted so far has been called.

        In the callback thread itself it returns at once, since waiting would be for ever.
        """
        if _thread is None or threading.current_thread() is _thread:
            return True
        passed = threading.Event()
        _work.put((Listener(), passed.set, ()))
        return passed.wait(timeout_s)


_work: queue.SimpleQueue[Work] = queue.SimpleQueue()
_thread: threading.Thread | None = None
_lock = threading.Lock()


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
    global _work, _thread, _lock
    _work, _thread, _lock = queue.SimpleQueue(), None, threading.Lock()


def _start() -> None:
    global _thread
    if _thread is None:
        with _lock:
            if _thread is None:
                _thread = threading.Thread(target=_run, name="dispy-callbacks", daemon=True)
                _thread.start()


def _run() -> None:
    work = _work
    while True:
        listener, function, args = work.get()
        if listener.silent:
            continue
        try:
            function(*args)
        except Exception:
            name = getattr(function, "__qualname__", function)
            logger.exception("the callback %s raised an exception", name)
        del listener, function, args  # while waiting, keep nobody's job alive
