"""Comparing ways to do one thing: interleaved rounds, medians, a table of ratios."""

from __future__ import annotations

import mmap
import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_LEFT = 4 << 30  # bytes


@contextmanager
def steady_memory(*, wanted: bool = True) -> Iterator[None]:
    """Hold all memory but 4 GiB, so that turns use the same pages again and again.

    The host of a virtual machine may take back what is free there, and the first use of such a
    page then costs up to ten times as much as writing to it: the same 1 GB took 0.2 s of the
    kernel's time and 1.7 s.
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    if not wanted or free <= _LEFT:
        yield
        return
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE
    with mmap.mmap(-1, free - _LEFT, flags=flags):
        yield


def compare(
    contenders: Mapping[str, Callable[[], float]],
    rounds: int = 3,
    *,
    pick: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Median (or what ``pick`` makes of all) of each contender, which returns its seconds.

    They take turns, so that whatever else the machine does hits all of them alike; dirty pages are
    written out before each turn. A round before the first does not count.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, run in contenders.items():
            os.sync()
            seconds = run()
            if number:
                taken[name].append(seconds)
    return {name: pick(times) for name, times in taken.items()}


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows as a Markdown table; the first is its head."""
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
