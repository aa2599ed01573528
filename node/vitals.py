"""What this machine has to spare: CPU, memory, disk, swap.

psutil is imported when somebody asks for the first time, so that a node starts fast.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

from dispy.protocol.messages import Vitals

log = logging.getLogger("dispy.node")


class Gauge:
    """Measures; ``folder`` is on the disk that counts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._has_failed = False
        self._is_first = True

    def read(self) -> Vitals | None:
        """Return what there is now; None where the system doesn't tell."""
        import psutil

        try:
            return Vitals(
                cpu=self._idle_percent(),
                memory=psutil.virtual_memory().available,
                disk=psutil.disk_usage(str(self._folder)).free,
                swap=round(100.0 - psutil.swap_memory().percent, 1),
            )
        except (OSError, RuntimeError, psutil.Error) as error:
            if not self._has_failed:
                log.warning("can't tell what this node has to spare: %s", error)
            self._has_failed = True
            return None

    def _idle_percent(self) -> float:
        """Since the last time; the first time, from the load of the last minute."""
        import psutil

        busy: float = psutil.cpu_percent(interval=None)
        if self._is_first:
            self._is_first = False
            busy = 100.0 * os.getloadavg()[0] / (os.cpu_count() or 1)
        return round(min(100.0, max(0.0, 100.0 - busy)), 1)
