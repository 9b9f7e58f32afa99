"""Time, memory and size in all the forms that people write, and growth after a failure."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import Cause, UsageError
from jobs.model import Resources
from orchestrator.resources import (
    format_time,
    grown,
    parse_limit,
    parse_mem,
    parse_size,
    parse_time,
)


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        pytest.param("90", 90, id="minutes"),
        pytest.param("90:00", 90, id="minutes and seconds"),
        pytest.param("90:01", 91, id="seconds are rounded up"),
        pytest.param("4:00:00", 240, id="hours"),
        pytest.param("0:00:30", 1, id="less than a minute"),
        pytest.param("2-0", 2880, id="days"),
        pytest.param("1-12", 2160, id="days and hours"),
        pytest.param("1-12:30", 2190, id="days, hours and minutes"),
        pytest.param("1-12:30:01", 2191, id="days to seconds"),
        pytest.param("UNLIMITED", 0, id="no limit"),
        pytest.param("infinite", 0, id="no limit, in other words"),
        pytest.param("-1", 0, id="no limit, as a number"),
        pytest.param("0", 0, id="zero is Slurm's no limit"),
        pytest.param(" 15 ", 15, id="blanks"),
    ],
)
def test_every_form_of_slurms_times_is_read(text: str, minutes: int) -> None:
    assert parse_time(text) == minutes


@pytest.mark.parametrize("text", ["", "4h", "1:2:3:4", "-5", "1-", "1-2:3:4:5", "٣", "1.5", "a\n"])
def test_what_is_no_time_is_refused_with_the_forms(text: str) -> None:
    with pytest.raises(UsageError, match="4:00:00"):
        parse_time(text)


@pytest.mark.parametrize("text", ["99999999:00:00", "71582789", "367-0"])
def test_nobody_asks_for_more_than_a_year(text: str) -> None:
    with pytest.raises(UsageError, match="more than a year"):
        parse_limit(text)
    assert parse_limit("365-0") == 365 * 1440
    assert parse_limit("UNLIMITED") == 0


@given(st.integers(0, 10**6))
def test_a_time_that_was_formatted_is_read_as_the_same(minutes: int) -> None:
    assert parse_time(format_time(minutes)) == minutes


@pytest.mark.parametrize(
    ("text", "megabytes"),
    [
        ("8G", 8192),
        ("8GB", 8192),
        ("8gib", 8192),
        ("8192", 8192),
        ("8192M", 8192),
        ("1T", 1 << 20),
        ("2048K", 2),
        ("1K", 1),
        ("1.5G", 1536),
        ("0", 0),
    ],
)
def test_memory_is_read_as_slurm_reads_it(text: str, megabytes: int) -> None:
    assert parse_mem(text) == megabytes


@pytest.mark.parametrize("text", ["", "8X", "G", "-1", "8 G B", "8G\n8G"])
def test_what_is_no_memory_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="8G"):
        parse_mem(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512M", 512 << 20),
        ("512MiB", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("20MB", 20_000_000),
        ("20mb", 20_000_000),
        ("1000", 1000),
        ("1000B", 1000),
        ("2P", 2 << 50),
    ],
)
def test_a_size_counts_in_1024s_unless_it_says_mb(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0.1", "-5M", "5X", "M", "1e9"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_size(text)


BEFORE = Resources(time_min=100, mem_mb=1000, exclude="n1")


@pytest.mark.parametrize(
    ("causes", "expected"),
    [
        pytest.param(set(), (1000, 100), id="nothing that more would mend"),
        pytest.param({Cause.NETWORK}, (1000, 100), id="another cause"),
        pytest.param({Cause.OUT_OF_MEMORY}, (2000, 100), id="twice the memory"),
        pytest.param({Cause.TIME_LIMIT}, (1000, 150), id="half as long again"),
        pytest.param({Cause.TIME_LIMIT, Cause.OUT_OF_MEMORY}, (2000, 150), id="both"),
    ],
)
def test_what_ran_out_is_asked_for_again_in_larger(
    causes: set[Cause], expected: tuple[int, int]
) -> None:
    after = grown(BEFORE, causes)
    assert (after.mem_mb, after.time_min) == expected


@pytest.mark.parametrize(("limit", "minutes"), [(None, 150), (200, 150), (120, 120), (80, 100)])
def test_time_grows_within_the_partitions_limit_and_never_shrinks(
    limit: int | None, minutes: int
) -> None:
    assert grown(BEFORE, {Cause.TIME_LIMIT}, limit_min=limit).time_min == minutes


def test_one_minute_becomes_two() -> None:
    assert grown(Resources(time_min=1), {Cause.TIME_LIMIT}).time_min == 2


def test_no_limit_and_all_of_a_nodes_memory_cannot_grow() -> None:
    most = Resources(time_min=0, mem_mb=0)
    assert grown(most, {Cause.TIME_LIMIT, Cause.OUT_OF_MEMORY}) == most


def test_memory_that_was_not_asked_for_is_asked_for_now() -> None:
    assert grown(Resources(), {Cause.OUT_OF_MEMORY}).mem_mb == 8192


def test_bad_nodes_are_added_to_those_left_out_once() -> None:
    after = grown(BEFORE, {Cause.NODE_FAILURE}, bad_nodes=["n2", "n1", "n2"])
    assert after.exclude == "n1,n2"
    assert grown(Resources(), set()).exclude is None


def test_a_limit_of_the_shell_is_not_passed_on_unless_the_user_asked_for_it() -> None:
    assert grown(Resources(), {Cause.LIMIT}).sbatch_args == ("--propagate=NONE",)
    said = Resources(sbatch_args=("--nice=1 --propagate=CPU",))
    assert grown(said, {Cause.LIMIT}) == said
