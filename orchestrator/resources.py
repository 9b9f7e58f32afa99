"""Parses times, amounts of memory and sizes, and computes resources after a failure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from msgspec import structs

from jobs.errors import Cause, UsageError
from jobs.model import Resources

UNLIMITED = 0  # minutes; Slurm's value for no limit
# A larger number is a mistake; Slurm counts seconds in 32 bits, so 71582789 minutes become one.
_MOST_MIN = 366 * 24 * 60

# Used instead of twice the site's default, which is unknown.
_FIRST_MEM_MB = 8192

_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<clock>\d+(?::\d+){0,2})", re.ASCII)
_MEM = re.compile(
    r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGT]?)(?:i?B)?", re.ASCII | re.IGNORECASE
)
_SIZE = re.compile(
    r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>[KMGTP]?)(?P<base>i?)B?", re.ASCII | re.IGNORECASE
)
_MB_IN = {"K": 1 / 1024, "": 1, "M": 1, "G": 1024, "T": 1024**2}
_POWERS = " KMGTP"


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


def grown(
    before: Resources,
    causes: Collection[Cause],
    *,
    bad_nodes: Iterable[str] = (),
    limit_min: int | None = None,
) -> Resources:
    """The resources to request after tasks ended for ``causes``.

    Twice the memory if it ran out; 1.5 times the time if that ran out, at most ``limit_min`` (the
    partition's limit in minutes; None if it has none); without ``bad_nodes``; and without the
    launching shell's limits (ulimit) if one was reached.
    """
    requested = before
    if Cause.OUT_OF_MEMORY in causes and before.mem_mb != 0:
        requested = structs.replace(
            requested, mem_mb=2 * before.mem_mb if before.mem_mb else _FIRST_MEM_MB
        )
    if Cause.TIME_LIMIT in causes and before.time_min != UNLIMITED:
        longer = -(-before.time_min * 3 // 2)
        most = longer if limit_min is None else max(limit_min, before.time_min)
        requested = structs.replace(requested, time_min=min(longer, most))
    if Cause.LIMIT in causes and not any("--propagate" in arg for arg in before.sbatch_args):
        requested = structs.replace(
            requested, sbatch_args=(*before.sbatch_args, "--propagate=NONE")
        )
    left_out = [node for node in (before.exclude, *bad_nodes) if node]
    return structs.replace(requested, exclude=",".join(dict.fromkeys(left_out)) or None)
