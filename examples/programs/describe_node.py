#!/usr/bin/env python3
"""Runs at a node, for ``node_update.py``: write a note there, print what machine this is."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from pathlib import Path


def main() -> int:
    note = Path(sys.argv[1])
    note.write_text(f"updated on {platform.node()}\n")
    free_gib = shutil.disk_usage(".").free / (1 << 30)
    for name in ("dispy_node_name", "dispy_node_ip_addr"):
        print(f"{name}: {os.environ[name]}")
    print(f"system: {platform.system()} {platform.machine()}, Python {platform.python_version()}")
    print(f"free disk: {free_gib:.1f} GiB")
    print(f"note: {note.read_text().strip()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
