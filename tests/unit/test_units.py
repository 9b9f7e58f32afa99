"""Sizes, rates, times: as they are shown, and in all the forms that people write."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from jobs.errors import UsageError
from orchestrator import units
from orchestrator.units import (
    format_time,
    parse_limit,
    parse_mem,
    parse_size,
    parse_time,
)


@pytest.mark.parametrize(
    ("count", "words"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.00 kB"),
        (999_499, "999.5 kB"),
        (999_500, "1.00 MB"),
        (10_240_000_000, "10.2 GB"),
        (4e15, "4.00 PB"),
        (4e19, "40000.0 PB"),
    ],
)
def test_sizes_have_a_decimal_prefix(count: float, words: str) -> None:
    assert units.size(count) == words


@pytest.mark.parametrize(
    ("seconds", "clock", "span"),
    [
        (-5, "0:00", "0 s"),
        (42, "0:42", "42 s"),
        (125, "2:05", "2 min"),
        (3723, "1:02:03", "62 min"),
        (11_100, "3:05:00", "3 h 5 min"),
        (10_800, "3:00:00", "3 h"),
        (187_445, "2d 04:04:05", "2 d 4 h"),
        (172_800, "2d 00:00:00", "2 d"),
    ],
)
def test_durations_as_a_clock_and_in_words(seconds: float, clock: str, span: str) -> None:
    assert (units.clock(seconds), units.span(seconds)) == (clock, span)


def test_a_moment_names_its_day_only_where_it_is_another_one() -> None:
    now = datetime.now(timezone.utc).astimezone().replace(hour=12)
    assert units.moment(now + timedelta(hours=1), now) == f"{now + timedelta(hours=1):%H:%M}"
    later = now + timedelta(days=2)
    assert units.moment(later, now) == f"{later:%a %H:%M}"
    assert units.moment(now + timedelta(days=30), now).startswith("2")


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ([], ""),
        ([4], "4"),
        ([17, 4, 7, 8, 9], "4,7-9,17"),
        ([1, 2], "1-2"),
        ([3, 3, 4], "3-4"),
    ],
)
def test_indices_are_ranges(numbers: list[int], words: str) -> None:
    assert units.indices(numbers) == words


def test_rates_and_plurals() -> None:
    assert (units.plural(1, "task"), units.plural(1200, "task")) == ("1 task", "1,200 tasks")
    assert (units.rate(0.84), units.rate(1204.2)) == ("0.8", "1,204")


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


def test_a_time_that_was_formatted_is_read_as_the_same() -> None:
    for minutes in (*range(3000), *range(3000, 10**6, 997)):
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
