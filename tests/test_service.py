"""The hours of a node, as a function of the time of day."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispy.node.service import DAY_S, Hours, Phase, hours_of, seconds_of, spelled

OPEN, STOPPED, ENDED = Phase.OPEN, Phase.STOPPED, Phase.ENDED
times = st.integers(0, DAY_S - 1)


def at(hours: Hours | None, time: str) -> Phase:
    assert hours is not None
    return hours.phase(seconds_of(time))


@st.composite
def some_hours(draw: st.DrawFn) -> Hours:
    """Any hours that the options can say."""
    start = draw(times)
    stop = draw(st.integers(1, DAY_S - 1))
    end = draw(st.none() | st.integers(stop, DAY_S - 1))
    return Hours(start, (start + stop) % DAY_S, None if end is None else (start + end) % DAY_S)


def test_a_day() -> None:
    hours = hours_of("9:00", "17:00", "18:30")
    phases = {time: at(hours, time) for time in ("0:00", "8:59:59", "9:00", "16:59:59")}
    assert phases == {"0:00": ENDED, "8:59:59": ENDED, "9:00": OPEN, "16:59:59": OPEN}
    phases = {time: at(hours, time) for time in ("17:00", "18:29:59", "18:30", "23:59:59")}
    assert phases == {"17:00": STOPPED, "18:29:59": STOPPED, "18:30": ENDED, "23:59:59": ENDED}


def test_a_night_goes_over_midnight() -> None:
    hours = hours_of("18:00", "06:00", "07:00")
    phases = [at(hours, time) for time in ("17:59", "18:00", "0:00", "5:59", "6:00", "7:00")]
    assert phases == [ENDED, OPEN, OPEN, OPEN, STOPPED, ENDED]


def test_without_an_end_jobs_go_on() -> None:
    hours = hours_of("18:00", "06:00", "")
    assert [at(hours, time) for time in ("6:00", "17:59:59", "18:00")] == [STOPPED, STOPPED, OPEN]


def test_without_a_stop_the_end_is_one() -> None:
    hours = hours_of("18:00", "", "06:00")
    assert [at(hours, time) for time in ("5:59", "6:00", "18:00")] == [OPEN, ENDED, OPEN]


def test_no_options_no_hours() -> None:
    assert hours_of("", "", "") is None


@pytest.mark.parametrize(
    "options, reason",
    [
        (("9:00", "", ""), "give both"),
        (("", "17:00", "18:00"), "give both"),
        (("9:00", "9:00", ""), "can't stop or end at that time"),
        (("9:00", "17:00", "9:00"), "can't stop or end at that time"),
        (("9:00", "17:00", "16:00"), "the end at 16:00 comes before the stop at 17:00"),
        (("18:00", "07:00", "06:00"), "the end at 06:00 comes before the stop at 07:00"),
        (("25:00", "17:00", ""), "'25:00' is not a time of day"),
        (("9", "17:00", ""), "'9' is not a time of day"),
        (("9:60", "17:00", ""), "'9:60' is not a time of day"),
        (("٩:00", "17:00", ""), "is not a time of day"),
    ],
)
def test_hours_that_make_no_sense(options: tuple[str, str, str], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        hours_of(*options)


def test_reasons() -> None:
    hours = hours_of("18:00", "06:00", "07:00:05")
    assert hours is not None
    assert hours.reason(OPEN) == ""
    assert hours.reason(STOPPED) == (
        "out of service until 18:00; jobs that run may go on until 07:00:05"
    )
    assert hours.reason(ENDED) == "out of service until 18:00"
    assert hours.ending() == "the node's service ended at 07:00:05"
    without = hours_of("18:00", "06:00", "")
    assert without is not None and without.reason(STOPPED) == "out of service until 18:00"


@given(times)
def test_times_are_spelled_as_they_are_read(time_s: int) -> None:
    assert seconds_of(spelled(time_s)) == time_s


@given(some_hours())
def test_what_the_options_can_say_is_taken(hours: Hours) -> None:
    end = "" if hours.end is None else spelled(hours.end)
    assert hours_of(spelled(hours.start), spelled(hours.stop), end) == hours


@given(some_hours(), times)
def test_nothing_changes_before_the_next_change(hours: Hours, time_s: int) -> None:
    until = hours.until_change(time_s)
    assert 0 < until <= DAY_S
    before = {hours.phase(time_s + part * (until - 1) / 7) for part in range(8)}
    assert before == {hours.phase(time_s)}
    moments = {hours.start, hours.stop, hours.end}
    assert (time_s + until) % DAY_S in moments


@given(some_hours())
def test_the_phases_of_a_day(hours: Hours) -> None:
    """From the start on: open, then stopped, then ended, each at most once, for a day in all."""
    seen: list[Phase] = []
    time_s, length = hours.start, 0.0
    while length < DAY_S:
        phase, until = hours.phase(time_s), hours.until_change(time_s)
        if not seen or seen[-1] is not phase:
            seen.append(phase)
        time_s, length = int(time_s + until) % DAY_S, length + until
    assert length == DAY_S and time_s == hours.start
    stops = hours.end != hours.stop
    ends = hours.end is not None
    assert seen == [OPEN, *([STOPPED] if stops else []), *([ENDED] if ends else [])]


@given(some_hours(), times, st.sampled_from([-3600, 3600]))
def test_when_the_clocks_change_what_they_show_counts(
    hours: Hours, time_s: int, change_s: int
) -> None:
    """Nothing is remembered: after a change it is as if it had always been that time."""
    changed = (time_s + change_s) % DAY_S
    assert hours.phase(time_s + change_s) is hours.phase(changed)
    assert hours.until_change(time_s + change_s) == hours.until_change(changed)
