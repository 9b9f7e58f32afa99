"""Formats numbers for the user: sizes, rates, durations, clock times."""

from __future__ import annotations

from datetime import datetime

_SIZES = ("kB", "MB", "GB", "TB", "PB")


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


def count(number: int) -> str:
    """An integer with separated thousands: ``79,413``."""
    return f"{number:,}"


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
