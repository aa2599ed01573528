"""Ends a daemon that unpickles: it is loaded at the start of each Python that has this folder.

Job processes may, so they are left alone: they are forked by the zygote, not by the daemon.
"""

import os
import pickle
import sys

_DAEMONS = ("dispy.broker.cli", "dispy.node.cli", "dispy.relay.cli")
EXIT = 77


def _abort(*_: object, **__: object) -> None:
    sys.stderr.write("a daemon has unpickled something\n")
    sys.stderr.flush()
    os._exit(EXIT)


if any(name in sys.orig_argv for name in _DAEMONS):
    for _name in ("loads", "load", "Unpickler", "_Unpickler"):
        setattr(pickle, _name, _abort)
