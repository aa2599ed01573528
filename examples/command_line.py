"""``dispy run``: a program with different arguments on nodes, without writing any Python.

This shows the command and what it prints. A job for each ``-a``; the files of ``-f`` go along;
the exit code tells whether all jobs went well.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from node_option import command_line

FOLDER = Path(__file__).resolve().parent
PROGRAM = "programs/count_lines.py"
TEXT = FOLDER / "command_line.py"
WORDS = ("import", "print", "return")


def run(nodes: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run ``dispy run`` with a job for each of the arguments; show it all."""
    options = ["-f", TEXT.name]
    for argument in arguments:
        options += ["-a", argument]
    for node in nodes:
        options += ["-n", node]
    command = ["run", *options, PROGRAM]
    shown = [f'"{word}"' if " " in word else word for word in command]
    print("\n$ dispy", *shown, flush=True)
    done = subprocess.run(
        [sys.executable, "-m", "dispy.cli", *command],
        cwd=FOLDER,  # files keep their path below the current folder, so these have none
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout + done.stderr, end="")
    print(f"(exit code {done.returncode})")
    return done


def lines_with(word: str) -> int:
    """Count the same here."""
    return sum(word in line for line in TEXT.read_text().splitlines())


def main() -> int:
    nodes = command_line(__doc__).parse_args().nodes or []
    done = run(nodes, *(f"{TEXT.name} {word}" for word in WORDS))
    counted = all(f"{lines_with(word)} lines with {word}" in done.stdout for word in WORDS)
    print("All lines were counted:", counted)

    failing = run(nodes, f"{TEXT.name} def", "no-such-file.txt def")
    told = failing.returncode != 0 and "there is no no-such-file.txt" in (
        failing.stdout + failing.stderr
    )
    print("A program that fails makes the exit code that of a failure:", told)
    return 0 if done.returncode == 0 and counted and told else 1


if __name__ == "__main__":
    raise SystemExit(main())
