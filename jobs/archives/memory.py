"""How much memory inflating may take: by the archive's size, and by what is free here.

https://docs.kernel.org/admin-guide/cgroup-v2.html#memory
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from jobs.archives.base import unsupported
from jobs.errors import ArchiveError
from jobs.runtime.process import cores

# What inflating may always take, so that a task stays below 128 MiB: `xz -9` needs 65 MiB.
_MEMORY = 72 << 20  # bytes
# A larger archive may have so many times its size, as hardly one shrinks more than that, ...
_SHRUNK = 32
# ... up to what the largest windows take: 2 GiB of `zstd --long=31`, 1.5 GiB of xz.
_MOST_MEMORY = (2 << 30) + (256 << 20)  # bytes

_CGROUPS = Path("/sys/fs/cgroup")
# Limit, use, and the cache within it that goes when memory is short; of version 2 and 1.
_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class Memory(NamedTuple):
    """What inflating may take."""

    most: int = _MEMORY  # bytes
    scarce: bool = False  # the archive could have more if this task had


LITTLE = Memory()  # what every archive may have


def memory_for(archive_bytes: int) -> Memory:
    """What a stream of an archive of that size may take to be inflated.

    Of a large one at most a half of what is free here; tasks that share a machine share that too.
    """
    most = min(_SHRUNK * archive_bytes, _MOST_MEMORY)
    if most <= _MEMORY:
        return LITTLE
    sharing = max(1, len(os.sched_getaffinity(0)) // cores())
    free = free_memory() // 2 // sharing
    return Memory(max(_MEMORY, min(most, free)), scarce=free < most)


def too_hungry(archive: str, fact: str, memory: Memory, command: str) -> ArchiveError:
    """The refusal of a stream; ``command`` inflates it elsewhere."""
    limit = (
        "are free on this machine" if memory.scarce else "are allowed for an archive of its size"
    )
    more = "give each task more memory (--mem), or " if memory.scarce else ""
    return unsupported(
        archive,
        f"{fact}, and {memory.most >> 20} MiB {limit}; {more}decompress it yourself "
        f"(`{command}`) and launch with --local-path",
    )


def free_memory(proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> int:
    """Bytes; 0 where nothing tells."""
    rooms = []
    with suppress(OSError):
        available = re.search(r"MemAvailable:\s+(\d+) kB", (proc / "meminfo").read_text())
        rooms += [int(available[1]) << 10] if available else []
    with suppress(OSError):
        rooms += _rooms((proc / "self/cgroup").read_text(), cgroups)
    return max(0, min(rooms, default=0))


def _rooms(lines: str, cgroups: Path) -> Iterator[int]:
    """What is left of each limit on the way from the process's own group to the root."""
    for line in lines.splitlines():
        _, controllers, path = line.split(":", 2)
        for folder, limit, use, cache in _FILES:
            if controllers.split(",") != [folder]:
                continue
            group = Path(path)
            for place in (group, *group.parents):
                room = _room(cgroups / folder / str(place).lstrip("/"), limit, use, cache)
                if room is not None:
                    yield room


def _room(place: Path, limit: str, use: str, cache: str) -> int | None:
    try:
        most = (place / limit).read_text().strip()
        used = int((place / use).read_text())
        found = re.search(rf"^{cache} (\d+)$", (place / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return None  # no such group, or no limit at this one
    if not most.isdecimal():
        return None
    return int(most) - used + (int(found[1]) if found else 0)
