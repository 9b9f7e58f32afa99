from __future__ import annotations

from datetime import datetime, timedelta, timezone

import pytest

from orchestrator import units


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


def test_counts_rates_and_plurals() -> None:
    assert units.count(79413) == "79,413"
    assert (units.plural(1, "task"), units.plural(1200, "task")) == ("1 task", "1,200 tasks")
    assert (units.rate(0.84), units.rate(1204.2)) == ("0.8", "1,204")
