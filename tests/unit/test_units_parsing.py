"""Time, memory and size in all the forms that people write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import UsageError
from orchestrator.units import (
    format_time,
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
