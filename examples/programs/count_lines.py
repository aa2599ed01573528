#!/usr/bin/env python3
"""Runs at a node, for ``command_line.py``: count the lines of a file that have a word."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> int:
    name, word = sys.argv[1:]
    if not Path(name).exists():
        print(f"there is no {name} here", file=sys.stderr)
        return 1
    print(sum(word in line for line in Path(name).read_text().splitlines()), "lines with", word)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
