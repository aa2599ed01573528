"""What the doctor makes of what was found out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from dispy.doctor import (
    CLOCK_S,
    DIFFERS,
    FAILED,
    FILES_MIN,
    NOTE,
    OK,
    OPEN,
    PLAIN,
    PROBLEM,
    REFUSED,
    SECRET,
    SILENT,
    Answer,
    Contact,
    Interface,
    Machine,
    Means,
    Remark,
    Target,
    advices,
    has_problem,
    judge_contacts,
    judge_found,
    judge_machine,
    unknown_host,
)

WITH = Means(True, "the file", software="1.0")
WITHOUT = Means(False, software="1.0")
NODE = Answer("node", "alpha", "1.0", "3.11.7", "Linux", 8, round_trip_s=0.0005, clock_s=0.01)
MACHINE = Machine(
    "here",
    {"dispy": "1.0", "libzmq": "4.3.5"},
    WITH,
    interfaces=[Interface("eth0", "192.168.1.5")],
    announced=["192.168.1.5:9701"],
    listening={9701: ["0.0.0.0"]},
    cpus=8,
    usable_cpus=8,
    files_soft=FILES_MIN,
    files_hard=FILES_MIN,
    shm_bytes=1 << 33,
    tmp="/tmp",
    tmp_bytes=1 << 33,
)


def there(*contacts: Contact, means: Means = WITH, **target: bool) -> list[Remark]:
    return judge_contacts(Target("node1", **target), contacts, means)


def at(port: int, outcome: str = OPEN, **fields: Any) -> Contact:
    return replace(Contact(f"192.168.1.7:{port}", outcome), **fields)


def only(remarks: list[Remark], level: str) -> Remark:
    [found] = [remark for remark in remarks if remark.level == level]
    return found


# -- another machine ----------------------------------------------------------------------------


def test_a_node_that_answers_is_all_that_is_needed() -> None:
    remarks = there(at(9700, REFUSED), at(9701, protection=SECRET, answer=NODE), at(9702, SILENT))
    assert not has_problem(remarks) and not advices(remarks)
    text = only(remarks, OK).text
    for part in ("node 'alpha'", "dispy 1.0", "8 CPUs", "Python 3.11.7", "0.5 ms"):
        assert part in text
    assert "clock" not in text


@pytest.mark.parametrize(
    ("contact", "means", "text", "advice"),
    [
        (at(9701, protection=SECRET), WITHOUT, "asks for a secret", "Bring the secret of node1"),
        (at(9701, protection=SECRET, refusal=DIFFERS), WITH, "differs", "scp node1:"),
        (at(9701, protection=PLAIN), WITH, "uses no secret, and this", "again, so that it finds"),
        (at(9701, protection=PLAIN), WITHOUT, "nor does this machine", "dispy secret new"),
        (
            at(9701, protection=SECRET, refusal="refused: a speaks version 1, b version 2"),
            WITH,
            "version 2",
            "same release",
        ),
        (at(9701, protection=SECRET, refusal="no answer came"), WITH, "no answer", "what it logs"),
    ],
)
def test_what_keeps_us_from_one_that_listens(
    contact: Contact, means: Means, text: str, advice: str
) -> None:
    remarks = there(contact, at(9700, REFUSED), means=means)
    found = only(remarks, PROBLEM)
    assert text in found.text and advice in found.advice and found.about == contact.address


def test_an_answer_without_a_secret_is_no_good_for_one_who_has_one() -> None:
    found = only(there(at(9701, protection=PLAIN, answer=NODE), is_here=True), PROBLEM)
    assert "node 'alpha'" in found.text and "uses no secret" in found.text
    assert not has_problem(there(at(9701, protection=PLAIN, answer=NODE), means=WITHOUT))


def test_on_this_machine_nothing_is_to_be_copied() -> None:
    for means in (WITH, WITHOUT):
        contact = at(9701, protection=SECRET, refusal=DIFFERS)
        found = only(there(contact, means=means, is_here=True), PROBLEM)
        assert "scp" not in found.advice and "dispy secret check" in found.advice


def test_something_else_is_only_in_the_way_where_dispy_was_expected() -> None:
    stranger = at(9701, detail="it says 'SSH-2.0'")
    assert "SSH-2.0" in only(there(stranger, is_exact=True), PROBLEM).text
    assert not has_problem(there(stranger, at(9700, protection=SECRET, answer=NODE)))


@pytest.mark.parametrize(
    ("outcomes", "advice"),
    [
        ([REFUSED, REFUSED, REFUSED], "Start dispy-node"),
        ([REFUSED, SILENT, SILENT], "Start dispy-node"),
        ([SILENT, SILENT, SILENT], "Let TCP through to node1, port 9700, 9701, 9702"),
        ([FAILED, FAILED], "route to node1"),
    ],
)
def test_where_nobody_answers_the_ways_in_which_decide(outcomes: list[str], advice: str) -> None:
    contacts = [at(9700 + number, outcome) for number, outcome in enumerate(outcomes)]
    remarks = there(*contacts)
    assert advice in only(remarks, PROBLEM).advice
    assert not has_problem(there(*contacts, is_wanted=False))


def test_addresses_that_lead_nowhere_do_not_matter_beside_one_that_does() -> None:
    dead = Contact("[fd00::7]:9701", SILENT, "nothing came back within 3 s")
    remarks = there(dead, at(9701, protection=SECRET, answer=NODE))
    assert not has_problem(remarks) and "within 3 s" in only(remarks, NOTE).text


def test_who_is_busy_clocks_versions_and_slow_ways_are_told() -> None:
    busy = "this node works for head at present"
    odd = replace(NODE, engaged=busy, clock_s=-CLOCK_S - 1, round_trip_s=0.5, software="0.9")
    remarks = there(at(9701, protection=SECRET, answer=odd))
    assert not has_problem(remarks)
    texts = " | ".join(remark.text for remark in remarks)
    for part in (busy, "3.0 s behind ours", "500 ms", "it has dispy 0.9, this machine 1.0"):
        assert part in texts
    said = " ".join(advices(remarks))
    assert "the broker that it works for" in said and "NTP" in said


def test_a_broker_may_have_a_secret_for_each_door() -> None:
    other = at(9700, protection=SECRET, refusal=DIFFERS)
    users = at(9702, protection=SECRET, answer=replace(NODE, role="broker"))
    assert "that of nodes" in only(there(other, at(9701, REFUSED), users)[:1], NOTE).text
    assert not has_problem(there(other, users))
    assert has_problem(there(other, at(9701, protection=SECRET, answer=NODE)))


def test_a_relay_may_work_for_somebody() -> None:
    relay = replace(NODE, role="relay", engaged="this relay works for head, and brings 3 peers")
    remarks = there(at(9701, protection=SECRET, answer=relay))
    assert "brings 3 peers" in only(remarks, NOTE).text and not advices(remarks)


def test_a_name_that_is_not_known() -> None:
    found = unknown_host("nod1", "Name or service not known")
    assert found.level == PROBLEM and "'nod1'" in found.advice


# -- this machine ---------------------------------------------------------------------------------


def test_a_machine_with_which_all_is_well() -> None:
    remarks = judge_machine(MACHINE)
    assert {remark.level for remark in remarks} == {OK} and not advices(remarks)
    assert any("192.168.1.5:9701" in remark.text for remark in remarks)


@pytest.mark.parametrize(
    ("change", "level", "advice"),
    [
        ({"secret_error": "others may read it"}, PROBLEM, "Repair the secret"),
        ({"means": WITHOUT}, NOTE, "dispy secret new"),
        ({"secret_warning": "less than 12 characters"}, NOTE, "better secret"),
        ({"folder_error": "others may write"}, PROBLEM, "right away"),
        ({"versions": {"libzmq": "4.2.5"}}, PROBLEM, "Upgrade pyzmq"),
        ({"files_hard": 256, "files_soft": 256}, PROBLEM, "open files"),
        ({"shm_bytes": 1 << 20}, NOTE, "/dev/shm"),
        ({"tmp_bytes": 1 << 20}, NOTE, "Make room"),
        ({"tmp_bytes": None}, PROBLEM, "another folder"),
        ({"listening": {9701: ["127.0.0.1"]}}, NOTE, "If others shall reach port 9701"),
    ],
)
def test_what_is_wrong_with_a_machine(change: dict[str, Any], level: str, advice: str) -> None:
    remarks = judge_machine(replace(MACHINE, **change))
    assert advice in only(remarks, level).advice
    assert has_problem(remarks) is (level == PROBLEM)


def test_no_secret_is_wanted_where_none_is_used() -> None:
    remarks = judge_machine(replace(MACHINE, means=Means(False, insecure=True)))
    assert "--insecure" in only(remarks, NOTE).text and not advices(remarks)


def test_the_urgent_advice_comes_first_and_once() -> None:
    remarks = [Remark(NOTE, "a", "", "Two."), Remark(PROBLEM, "b", "", "One.")] * 2
    assert advices(remarks) == ["One.", "Two."]


# -- discovery ------------------------------------------------------------------------------------


def test_who_was_found_and_can_not_be_reached() -> None:
    found = {
        "a": [at(9701, SILENT, detail="nothing came back"), at(9711, SECRET, answer=NODE)],
        "b": [at(9721, REFUSED), at(9731, SILENT, detail="nothing came back")],
    }
    remarks = judge_found(found, WITH)
    assert "node 'alpha'" in only(remarks, OK).text
    text = only(remarks, PROBLEM).text
    assert "192.168.1.7:9721: refused; 192.168.1.7:9731: nothing came back" in text
    assert judge_found({}, WITH)[0].level == NOTE
