"""Comparing ways to do one thing: interleaved rounds, medians, a table of ratios."""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Mapping


def compare(
    contenders: Mapping[str, Callable[[], float]],
    rounds: int = 3,
    *,
    pick: Callable[[list[float]], float] = statistics.median,
) -> dict[str, float]:
    """Median (or what ``pick`` makes of all) of each contender, which returns its seconds.

    They take turns, so that whatever else the machine does hits all of them alike; dirty pages are
    written out before each turn.
    """
    taken: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, run in contenders.items():
            os.sync()
            taken[name].append(run())
    return {name: pick(times) for name, times in taken.items()}


def table(rows: list[tuple[str, ...]]) -> str:
    """Rows as a Markdown table; the first is its head."""
    head, *body = rows
    lines = [head, tuple("---" for _ in head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
