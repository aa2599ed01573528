"""Programs as computations: each job executes one, and its exit status is the result.

The program runs below the job process, in its process group and with its output files, so all
that is done to a job is done to the program.
"""

from __future__ import annotations

import builtins
import os
import subprocess
import sys


class Program:
    """What a job of such a computation calls.

    ``path`` is below the folder of the job; ``names`` go into the environment.
    """

    def __init__(self, path: str, names: dict[str, str]) -> None:
        self._path = path
        self._names = names

    def __call__(self, *args: object) -> int:
        """Run the program to its end; return its exit status, negative for a signal.

        Raises `OSError` when it can't be executed here.
        """
        folder: str = builtins.dispy_job_path  # type: ignore[attr-defined]
        path = os.path.join(folder, self._path)
        command = [sys.executable, path] if path.endswith(".py") else [path]
        try:
            process = subprocess.Popen(
                [*command, *map(str, args)], env=self._environment(folder), cwd=folder
            )
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            text = f"the program {self._path!r} can't be executed at this node: {reason}"
            raise OSError(text) from None
        return _wait(process)

    def _environment(self, folder: str) -> dict[str, str]:
        names = {**os.environ, **self._names, "dispy_job_path": folder}
        for name in ("PATH", "PYTHONPATH"):
            old = os.environ.get(name)
            names[name] = f"{folder}{os.pathsep}{old}" if old else folder
        return names


def _wait(process: subprocess.Popen[bytes]) -> int:
    """Wait for a program. An interrupt has reached it as well, and it may take its time to end."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
