"""The small parts that the scheduler is built of: numbers seen, and the line of waiting jobs."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from dispy.broker.line import ENDED_MAX, Line
from dispy.broker.seen import BLOCK, Seen
from dispy.broker.state import Job
from dispy.protocol.messages import JobOptions, JobSpec


def job(seq: int, priority: int = 0) -> Job:
    return Job(JobSpec(seq, 0, b"", [], JobOptions(priority) if priority else None))


@given(st.lists(st.integers(-5, 3 * BLOCK)))
def test_numbers_are_taken_once_in_any_order(numbers: list[int]) -> None:
    seen, known = Seen(), set(range(-5, 1))
    for number in numbers:
        assert (number in seen) == (number in known)
        assert seen.add(number) == (number not in known)
        known.add(number)
        assert seen.upto + 1 not in known and seen.upto in known


def test_closed_gaps_cost_no_memory_and_open_ones_little() -> None:
    seen = Seen()
    for number in range(50 * BLOCK, 1, -1):
        assert seen.add(number)
    assert len(seen) == 51
    assert seen.add(1)
    assert len(seen) <= 1 and seen.upto == 50 * BLOCK


@given(st.lists(st.tuples(st.sampled_from(["add", "back", "take", "strike"]), st.integers(-2, 2))))
def test_a_line_is_ordered_by_priority_then_by_arrival(steps: list[tuple[str, int]]) -> None:
    line, model = Line(), list[Job]()
    for seq, (step, priority) in enumerate(steps):
        if step == "add":
            line.append(new := job(seq, priority))
            behind = [each for each in model if priority_of(each) >= priority]
            model.insert(len(behind), new)
        elif step == "back":
            line.put_back(new := job(seq, priority))
            before = [each for each in model if priority_of(each) > priority]
            model.insert(len(before), new)
        elif step == "take" and model:
            assert line.top() == priority_of(model[0])
            assert line.take() is model.pop(0)
        elif step == "strike" and model:
            line.strike(model.pop(seq % len(model)))
        assert list(line) == model and line.waiting == len(model)


def priority_of(job: Job) -> int:
    return job.spec.options.priority if job.spec.options else 0


def test_jobs_that_end_in_the_line_are_not_kept_for_ever() -> None:
    line = Line()
    line.append(job(0))
    for seq in range(1, 10 * ENDED_MAX):
        line.append(ended := job(seq))
        line.strike(ended)
        assert len(line) <= ENDED_MAX + 2
