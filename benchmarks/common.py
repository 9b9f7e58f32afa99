"""Compare ways to do one thing: interleaved rounds, medians, a table of ratios."""

from __future__ import annotations

import os
import statistics
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

_BLOCK = 1 << 20  # bytes
_SLOW_CREATION = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <time.h>
static void wait_for(int flags) {
    if (flags & O_CREAT) {
        struct timespec t = {0, atol(getenv("SLOW_CREATION_US")) * 1000L};
        nanosleep(&t, 0);
    }
}
#define MODE va_list list; va_start(list, flags); int mode = va_arg(list, int); va_end(list)
#define OPEN(name) int name(const char *path, int flags, ...) { \
    static int (*real)(const char *, int, ...); \
    if (!real) real = dlsym(RTLD_NEXT, #name); \
    MODE; wait_for(flags); return real(path, flags, mode); }
#define OPENAT(name) int name(int folder, const char *path, int flags, ...) { \
    static int (*real)(int, const char *, int, ...); \
    if (!real) real = dlsym(RTLD_NEXT, #name); \
    MODE; wait_for(flags); return real(folder, path, flags, mode); }
OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64)
"""


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


def slow_creation(folder: Path, micros: int) -> dict[str, str]:
    """The environment of a program for which creating a file takes so much longer.

    A busy metadata server of a cluster file system takes milliseconds. Needs ``cc``; ``folder``
    gets the library that is loaded before the C library's functions.
    """
    library = folder / "slow_creation.so"
    if not library.exists():
        source = library.with_suffix(".c")
        source.write_text(_SLOW_CREATION)
        build = ["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"]
        subprocess.run(build, check=True)
    return {"LD_PRELOAD": str(library), "SLOW_CREATION_US": str(micros)}


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
