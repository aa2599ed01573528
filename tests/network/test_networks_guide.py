"""The command lines of docs/networks.md: each is typed at the machine that it says.

A section is played on machines of a network that is made for it.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from .places import Place, connect

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "networks.md").read_text()
HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINE = re.compile(r"(\w+)\$ (.+)")
STEPS = "Several machines, step by step"
RELAYS = "Relays"
MESSAGES = "What messages mean"


def sections() -> dict[str, list[list[tuple[str, str]]]]:
    """Return the blocks of each section: lines, as hosts and what is typed there."""
    found: dict[str, list[list[tuple[str, str]]]] = {}
    for block in BLOCK.finditer(GUIDE):
        section = HEADING.findall(GUIDE[: block.start()])[-1]
        lines = [LINE.fullmatch(line) for line in block[1].splitlines()]
        assert all(lines), block[1]
        found.setdefault(section, []).append([(line[1], line[2]) for line in lines if line])
    return found


SECTIONS = sections()


def play(place: Place, blocks: list[list[tuple[str, str]]]) -> list[str]:
    """Type all that is there; return what the runs have printed."""
    printed = []
    for block in blocks:
        if any(
            line.split()[0] in ("dispy-node", "dispy-broker", "dispy-relay") for _, line in block
        ):
            place.stop()
        for host, line in block:
            output = place.type(host, line)
            if " run " in line:
                assert "work 1" in output and "work 2" in output, output + place.logs()
                printed.append(output)
    place.stop()
    return printed


def test_every_command_is_found() -> None:
    assert sum(len(block) for blocks in SECTIONS.values() for block in blocks) == sum(
        bool(LINE.fullmatch(line)) for line in GUIDE.splitlines()
    )
    assert {STEPS, RELAYS} < SECTIONS.keys() and len(SECTIONS) > 7


@pytest.mark.parametrize("section", [each for each in SECTIONS if each != RELAYS])
def test_a_section_in_one_network(section: str, place: Place) -> None:
    blocks = SECTIONS[section]
    names = dict.fromkeys(["desk", "node1", *(host for block in blocks for host, _ in block)])
    connect(place, *names)
    if section != STEPS:
        place.hand_out()
    if section == MESSAGES:
        place.type("node1", "dispy-node")
    for output in play(place, blocks):
        assert "ssh" in section or "at 127.0.0.1" not in output, "it ran at home"


def test_one_relay(place: Place) -> None:
    [first, _] = SECTIONS[RELAYS]
    connect(place, "desk", "gate", "node1", last=False)
    place.hand_out()
    play(place, [first])


def test_two_relays_in_a_row(place: Place) -> None:
    [_, second] = SECTIONS[RELAYS]
    connect(place, "head", "gate", "gate2", "node1", last=False)
    place.hand_out()
    play(place, [second])


def test_the_messages_are_those_of_the_program() -> None:
    """What stands in the table is a part of what is said, so that it's found."""
    table = GUIDE.partition("## What messages mean")[2]
    messages = re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE)
    sources = [
        path.read_text()
        for folder in ("protocol", "client", "node", "broker", "relay")
        for path in (ROOT / folder).glob("*.py")
    ]
    said = [re.sub(r'"\s*\n\s*f?"', "", source) for source in sources]
    missing = [each for each in messages if not any(each in source for source in said)]
    assert len(messages) > 10 and not missing
