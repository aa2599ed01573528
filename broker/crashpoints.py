"""Points at which a test can have the broker killed, to see that nothing depends on the moment.

``DISPY_CRASH_AT=before-commit:3`` kills the process the third time that it gets to that point.
Without the variable a point costs next to nothing. A transaction of the journal passes
``after-write`` once for each run of effects of one kind.
"""

from __future__ import annotations

import os
import signal

POINTS = (
    "before-write",
    "after-write",
    "before-commit",
    "after-commit",
    "before-send",
    "after-send",
)

_point, _, _count = os.environ.get("DISPY_CRASH_AT", "").partition(":")
_left = int(_count or 1)
if _point and _point not in POINTS:  # a test that never crashes would prove nothing
    raise ValueError(f"DISPY_CRASH_AT={_point}: there are only {', '.join(POINTS)}")


def crashpoint(name: str) -> None:
    """Be killed here, if that was asked for."""
    global _left
    if name == _point:
        _left -= 1
        if not _left:
            os.kill(os.getpid(), signal.SIGKILL)
