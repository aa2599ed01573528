"""``dispy doctor`` between machines: discovery, silence, relays, and machines without a secret."""

from __future__ import annotations

import json
from typing import Any

from tests.end_to_end.waiting import until

from .namespaces import partition
from .places import Place, connect


def examine(place: Place, host: str, *words: str) -> tuple[list[str], dict[str, Any]]:
    """Return the problems that the doctor finds at a machine, and all that it tells."""
    done = place.run(host, " ".join(["dispy doctor --json --timeout 2", *words]))
    assert done.returncode in (0, 1) and not done.stderr, done.stderr
    told = json.loads(done.stdout)
    problems = [each["text"] for each in told["remarks"] if each["level"] == "problem"]
    assert bool(problems) == bool(done.returncode)
    return problems, told


def texts(told: dict[str, Any]) -> str:
    return "\n".join(f"{each['section']}: {each['text']}" for each in told["remarks"])


def test_a_node_is_found_and_then_it_falls_silent(place: Place) -> None:
    connect(place, "desk", "node1")
    place.hand_out()
    place.type("node1", "dispy-node --name alpha")
    problems, told = examine(place, "desk")
    assert not problems, problems
    assert "Who is found with our secret: node 'alpha'" in texts(told)
    assert "peers can be found through it" in texts(told)
    assert "others would be told to dial 10.0.0.1:9701" in texts(told)
    problems, told = examine(place, "desk", "node1")
    assert not problems and "node 'alpha'" in texts(told)
    partition(place.hosts["desk"], place.hosts["node1"])
    [problem], told = examine(place, "desk", "node1")
    assert "a firewall drops" in problem
    assert any("Let TCP through to node1" in each for each in told["advice"])


def test_without_a_secret_a_node_of_another_machine_is_not_spoken_to(place: Place) -> None:
    connect(place, "desk", "node1")
    place.hand_out()
    place.type("node1", "dispy-node")
    (place.homes / "desk" / ".config" / "dispy" / "secret").unlink()
    [problem], told = examine(place, "desk", "node1")
    assert "it asks for a secret, and there is none here" in problem
    assert told["advice"][0].startswith("Bring the secret of node1 here: scp node1:")
    assert told["contacts"][1]["asked"] is False
    place.stop()
    place.type("node1", "dispy-node --insecure -i 10.0.0.2")
    [problem], told = examine(place, "desk", "node1")
    assert "it uses no secret, nor does this machine" in problem
    assert told["contacts"][1]["asked"] is False
    problems, told = examine(place, "desk", "--insecure", "node1")
    assert not problems and told["contacts"][1]["answer"]["role"] == "node"
    problems, _ = examine(place, "desk")
    assert not problems


def test_a_relay_says_whom_it_works_for_and_what_is_behind_it(place: Place) -> None:
    connect(place, "head", "gate", "node1", last=False)
    place.hand_out()
    place.type("gate", "dispy-relay")
    problems, told = examine(place, "head", "gate")
    assert not problems and texts(told).count("relay 'relay at gate'") == 2
    assert "works for no broker at present" in texts(told)
    place.type("head", "dispy-broker --node gate --name chief")
    place.type("node1", "dispy-node --broker gate")

    def is_known() -> bool:
        _, told = examine(place, "head", "gate:9701")
        return "this relay works for chief, and brings 1 peers to it" in texts(told)

    until(is_known, "the relay's word for it")
    problems, told = examine(place, "node1", "10.0.0.2")
    assert "route" in told["advice"][0] and len(problems) == 1
