"""Formats sizes, rates, durations and times for the user, and parses those of the user."""

from __future__ import annotations

import re
from datetime import datetime

from jobs.errors import UsageError

_SIZES = ("kB", "MB", "GB", "TB", "PB")
UNLIMITED = 0  # minutes; Slurm's value for no limit
# A larger number is a mistake; Slurm counts seconds in 32 bits, so 71582789 minutes become one.
_MOST_MIN = 366 * 24 * 60

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})", re.ASCII)
_MEM = re.compile(
    r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE
)
_SIZE = re.compile(
    r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGTP]?)(?P<base>i?)B?", re.ASCII | re.IGNORECASE
)
_MB_IN = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}
_POWERS = " KMGTP"


def size(count: float) -> str:
    """Bytes with a decimal prefix and three or four digits: ``10.2 GB``."""
    value = float(count)
    if value < 1000:
        return f"{value:.0f} B"
    for unit in _SIZES:
        value /= 1000
        if value < 999.5 or unit == _SIZES[-1]:
            break
    return f"{value:.2f} {unit}" if value < 9.995 else f"{value:.1f} {unit}"


def rate(number: float) -> str:
    """A rate a second: an integer from ten on, one decimal below."""
    return f"{number:,.0f}" if number >= 9.95 else f"{number:.1f}"


def percent(fraction: float) -> str:
    """Percent, rounded down: 100% means complete."""
    return f"{int(fraction * 100 + 1e-9)}%"


def plural(number: int, noun: str) -> str:
    """``1 task``, ``12 tasks``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def clock(seconds: float) -> str:
    """A duration in the format of a clock: ``0:42``, ``1:02:03``, ``2d 04:05:06``."""
    rounded = max(0, round(seconds))
    days, rest = divmod(rounded, 86400)
    hours, rest = divmod(rest, 3600)
    minutes, secs = divmod(rest, 60)
    if days:
        return f"{days}d {hours:02}:{minutes:02}:{secs:02}"
    return f"{hours}:{minutes:02}:{secs:02}" if hours else f"{minutes}:{secs:02}"


def span(seconds: float) -> str:
    """A duration in its largest one or two units: ``40 s``, ``12 min``, ``3 h 5 min``."""
    rounded = max(0, round(seconds))
    if rounded < 90:
        return f"{rounded} s"
    minutes = round(rounded / 60)
    if minutes < 90:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 36:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def moment(when: datetime, now: datetime) -> str:
    """A time in the local time zone: ``14:20``, ``Tue 14:20``, ``2026-11-24 14:20``."""
    here = when.astimezone()
    away = abs((when - now).total_seconds())
    if away < 86400 and here.date() == now.astimezone().date():
        return f"{here:%H:%M}"
    return f"{here:%a %H:%M}" if away < 6 * 86400 else f"{here:%Y-%m-%d %H:%M}"


def indices(numbers: list[int] | tuple[int, ...]) -> str:
    """Task numbers as ranges: ``4,7-17``."""
    groups: list[list[int]] = []
    for number in sorted(numbers):
        if groups and number == groups[-1][1] + 1:
            groups[-1][1] = number
        elif not groups or number != groups[-1][1]:
            groups.append([number, number])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in groups)


def within(time_min: int, limit_min: int) -> int:
    """The shorter one of two time limits in minutes, each of which may be ``UNLIMITED``."""
    if UNLIMITED in (time_min, limit_min):
        return max(time_min, limit_min)
    return min(time_min, limit_min)


def parse_time(text: str) -> int:
    """Minutes, from any of Slurm's formats; seconds are rounded up, 0 (``UNLIMITED``) is no limit.

    Formats: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S, UNLIMITED, INFINITE and -1
    (https://slurm.schedmd.com/sbatch.html#OPT_time). Raises ``UsageError``.
    """
    word = text.strip()
    if word.upper() in ("UNLIMITED", "INFINITE", "-1"):
        return UNLIMITED
    match = _TIME.fullmatch(word)
    if match is None:
        raise UsageError(
            f"{text!r} is not a time limit; write 90 (minutes), 4:00:00, 1-12 (days-hours), "
            "1-12:30, 1-12:30:00 or UNLIMITED"
        )
    numbers = [int(number) for number in match["clock"].split(":")]
    if match["days"] is not None:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
        hours += 24 * int(match["days"])
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, minutes, seconds = (0, *numbers, 0)[:3]
    return (hours * 3600 + minutes * 60 + seconds + 59) // 60


def parse_limit(text: str) -> int:
    """As ``parse_time``, for a user's time limit: at most a year."""
    minutes = parse_time(text)
    if minutes > _MOST_MIN:
        raise UsageError(
            f"{text!r} is more than a year ({minutes // 1440:,} days); a number alone is minutes, "
            "H:M:S and D-H begin with hours and days, and UNLIMITED is no limit"
        )
    return minutes


def format_time(minutes: int) -> str:
    """Minutes as ``H:MM:SS`` or ``D-HH:MM:SS``, formats of ``parse_time`` and Slurm."""
    if minutes == UNLIMITED:
        return "UNLIMITED"
    days, rest = divmod(minutes, 24 * 60)
    hours, rest = divmod(rest, 60)
    return f"{days}-{hours:02}:{rest:02}:00" if days else f"{hours}:{rest:02}:00"


def parse_mem(text: str) -> int:
    """Mebibytes, from the formats of Slurm's --mem: 8G, 8192, 8192M; rounded up.

    0 means all of a node's memory, as in Slurm. Raises ``UsageError``.
    """
    match = _MEM.fullmatch(text.strip())
    if match is None:
        raise UsageError(
            f"{text!r} is not an amount of memory; write 8G, 8192M or 8192 (megabytes)"
        )
    return -int(-float(match["number"]) * _MB_IN[match["unit"].upper()] // 1)


def parse_count(text: str) -> int:
    """A number of 1 or more. Raises ``UsageError``."""
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(f"{text!r} is not a number of 1 or more")
    return int(text)


def parse_size(text: str) -> int:
    """Bytes: 512M and 1.5GiB use powers of 1024, 20MB of 1000. Raises ``UsageError``."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"{text!r} is not a size; write 512M, 1.5GiB, 20MB or a number of bytes")
    decimal = text.strip().upper().endswith("B") and not match["base"]
    power = _POWERS.index(match["unit"].upper() or " ")
    size = int(float(match["number"]) * (1000 if decimal else 1024) ** power)
    if size < 1:
        raise UsageError(f"{text!r} is less than one byte")
    return size
