"""The guide's programs: each is run as it stands there, in an empty folder, with no node."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .at_broker import embedded_only
from .conftest import RunProgram, StartBroker, StartNode
from .waiting import PATIENCE_S

GUIDE = (Path(__file__).parents[2] / "docs" / "guide.md").read_text()
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def programs() -> dict[str, str]:
    """Return all programs of the guide, by their sections."""
    found: dict[str, str] = {}
    for block in BLOCK.finditer(GUIDE):
        section = HEADING.findall(GUIDE[: block.start()])[-1].replace("`", "")
        same = sum(name.partition(" #")[0] == section for name in found)
        found[f"{section} #{same + 1}" if same else section] = block[1]
    return found


PROGRAMS = programs()
SHARED = "Sharing nodes with others"  # needs a broker


def test_every_program_of_the_guide_is_found() -> None:
    assert len(PROGRAMS) == GUIDE.count("```python") > 5


@embedded_only("its programs name no nodes, and a broker starts none")
@pytest.mark.parametrize("name", [name for name in PROGRAMS if not name.startswith(SHARED)])
def test_a_program_of_the_guide_runs(name: str, start_program: RunProgram) -> None:
    program = start_program(PROGRAMS[name])
    assert program.wait(PATIENCE_S) == 0, program.log()


def test_the_program_with_a_shared_broker_runs(
    start_program: RunProgram, start_broker: StartBroker, start_node: StartNode
) -> None:
    broker = start_broker()
    start_node("--broker", broker.for_nodes)
    source = PROGRAMS[SHARED]
    assert '"localhost"' in source
    program = start_program(source.replace('"localhost"', f'"{broker.address}"'))
    assert program.wait(PATIENCE_S) == 0, program.log()
