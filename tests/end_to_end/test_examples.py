"""The examples: each is run as a user would, says what it should, and leaves nothing behind.

They check by themselves that what they show is right, and say so with their exit code.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import StartNode
from .processes import Marked

EXAMPLES = Path(__file__).parents[2] / "examples"
NOT_EXAMPLES = {"demo", "node_option", "own_broker", "own_node", "scratch_folder"}
LIMIT_S = 40.0  # each takes a few seconds; a busy machine gets more

SHOWN = {
    "bounded_submission": "there are 33,860 primes below 400,000",
    "checksums": "the results are the same",
    "command_line": "A program that fails makes the exit code that of a failure: True",
    "delegate": "is_palindrome('A man, a plan, a canal: Panama') = True",
    "in_memory": "40 of 40 jobs found the right station",
    "job_scheduler": "12 checksums, all of them right: True",
    "live_output": "Its output came while it ran: True",
    "long_running": "The best tour is",
    "map_reduce": "The counts are right: True",
    "node_update": "1 of 1 nodes are up to date",
    "objects": "All came back as they would have from a walk at home: True",
    "provisional_results": "Good enough. 4 of 4 jobs were cancelled.",
    "recover": "the program was killed, with its jobs",
    "replace_in_memory": "4 volumes were read, and all counts are right: True",
    "sample": "Total job time",
    "send_files": "6 files have arrived, and make up the picture: True",
    "shared_broker": "storms: 12 of 12 jobs finished, results are right: True",
    "shared_values": "Nothing was lost or counted twice: True",
}
LESS = {"checksums": ("--limit=300",)}  # than what the example does of its own accord
ON_TWO_NODES = {  # those that care which node it is
    "in_memory": "40 of 40 jobs found the right station",
    "job_scheduler": "12 checksums, all of them right: True",
    "node_update": "2 of 2 nodes are up to date",
    "replace_in_memory": "4 volumes were read, and all counts are right: True",
    "shared_values": "Nothing was lost or counted twice: True",
}


class Run:
    """Run an example to its end; it must end well and leave nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Marked] = []

    def __call__(self, name: str, *options: str) -> str:
        """Return what it has printed."""
        process = Marked([sys.executable, str(EXAMPLES / f"{name}.py"), *options], self.folder)
        self.processes.append(process)
        code = process.wait(LIMIT_S)
        assert code == 0, f"exit code {code}\n{process.output()}\n{process.log()}"
        process.assert_nothing_left()
        assert sorted(path.name for path in process.folder.iterdir()) == ["err", "out", "tmp"]
        return process.output()


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    """Run examples."""
    runner = Run(tmp_path)
    yield runner
    for process in runner.processes:
        process.clear_away()


def test_all_examples_are_here() -> None:
    assert {path.stem for path in EXAMPLES.glob("*.py")} - NOT_EXAMPLES == SHOWN.keys()


def test_the_readme_lists_them_all() -> None:
    text = (EXAMPLES / "README.md").read_text()
    assert [name for name in SHOWN if f"| [{name}.py]({name}.py) |" not in text] == []


@pytest.mark.parametrize("name", SHOWN)
def test_an_example_shows_what_it_should(name: str, run: Run) -> None:
    assert SHOWN[name] in run(name, *LESS.get(name, ()))


@pytest.mark.parametrize("name", ON_TWO_NODES)
def test_an_example_uses_the_nodes_that_are_given(
    name: str, run: Run, start_node: StartNode
) -> None:
    nodes = [start_node("--name", f"n{number}", cpus=1) for number in range(2)]
    shown = run(name, *(f"--node={node.address}" for node in nodes))
    assert ON_TWO_NODES[name] in shown
