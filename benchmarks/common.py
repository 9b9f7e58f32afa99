"""Compare ways to do one thing: interleaved rounds, medians, a table of ratios."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_BLOCK = 1 << 20  # bytes

# Where it is set, as in some containers, each process compiles all modules again: 0.5 s of CPU time
# for a small run, which users do not have.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


@contextmanager
def steady_memory(folder: Path) -> Iterator[None]:
    """Fill the page cache from a sparse file, so that no measurement uses fresh pages.

    The host of a virtual machine may reclaim its free pages; the first use of such a page then
    takes six times as long: 2.6 s per GiB instead of 0.4 s. A full cache, as on most nodes,
    leaves no free pages.
    """
    room = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    hole = folder / "hole"
    try:
        hole.touch()
        os.truncate(hole, room)
        for _ in range(2):  # once more, for pages that the first pass evicted
            with hole.open("rb", buffering=0) as stream:
                while stream.read(_BLOCK):
                    pass
        yield
    finally:
        hole.unlink(missing_ok=True)


def compare(
    contenders: Mapping[str, Callable[[], float]],
    rounds: int = 3,
    *,
    pick: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Median (or what ``pick`` makes of all) of each contender, which returns its seconds.

    They run alternately, so that other work on the machine affects all of them alike; dirty pages
    are written to the disk before each. A warm-up round is not counted.
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
    """Rows as a Markdown table; the first row is the header."""
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
