"""How much memory decompression may use, by the archive's size and the free memory.

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

# Decompression may always use this much; a task stays below 128 MiB. `xz -9` needs 65 MiB.
_MEMORY = 72 << 20  # bytes
# A larger archive may use this many times its size, because few shrink by a larger factor, ...
_SHRUNK = 32
# ... up to what the largest windows need: 2 GiB of `zstd --long=31`, 1.5 GiB of xz.
_MOST_MEMORY = (2 << 30) + (256 << 20)  # bytes

_CGROUPS = Path("/sys/fs/cgroup")
# Files with the limit, the use, and the reclaimable cache in it; of cgroup versions 2 and 1.
_FILES = (
    ("", "memory.max", "memory.current", "inactive_file"),
    ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


class Memory(NamedTuple):
    """How much memory decompression may use."""

    most: int = _MEMORY  # bytes
    scarce: bool = False  # the archive could use more if more were free


LITTLE = Memory()  # for every archive


def memory_for(archive_bytes: int) -> Memory:
    """How much memory decompressing an archive of that size may use.

    For a large one at most half of the free memory, divided by the tasks that share a machine.
    """
    most = min(_SHRUNK * archive_bytes, _MOST_MEMORY)
    if most <= _MEMORY:
        return LITTLE
    sharing = max(1, len(os.sched_getaffinity(0)) // cores())
    free = free_memory() // 2 // sharing
    return Memory(max(_MEMORY, min(most, free)), scarce=free < most)


def too_hungry(archive: str, fact: str, memory: Memory, command: str) -> ArchiveError:
    """An error for a stream that needs more memory; ``command`` decompresses it elsewhere."""
    limit = (
        "are free on this machine" if memory.scarce else "are allowed for an archive of its size"
    )
    more = "give each task more memory (--mem), or " if memory.scarce else ""
    return unsupported(
        archive,
        f"{fact}, but only {memory.most >> 20} MiB {limit}; {more}decompress it yourself "
        f"(`{command}`) and launch with --local-path",
    )


def free_memory(proc: Path = Path("/proc"), cgroups: Path = _CGROUPS) -> int:
    """Free memory in bytes; 0 if unknown."""
    amounts = []
    with suppress(OSError):
        available = re.search(r"MemAvailable:\s+(\d+) kB", (proc / "meminfo").read_text())
        amounts += [int(available[1]) << 10] if available else []
    with suppress(OSError):
        amounts += _free_in_groups((proc / "self/cgroup").read_text(), cgroups)
    return max(0, min(amounts, default=0))


def _free_in_groups(lines: str, cgroups: Path) -> Iterator[int]:
    """Free bytes below each limit, from the process's own group up to the root."""
    for line in lines.splitlines():
        _, controllers, path = line.split(":", 2)
        for folder, limit, use, cache in _FILES:
            if controllers.split(",") != [folder]:
                continue
            group = Path(path)
            for place in (group, *group.parents):
                free = _free_in_group(cgroups / folder / str(place).lstrip("/"), limit, use, cache)
                if free is not None:
                    yield free


def _free_in_group(place: Path, limit: str, use: str, cache: str) -> int | None:
    try:
        most = (place / limit).read_text().strip()
        used = int((place / use).read_text())
        found = re.search(rf"^{cache} (\d+)$", (place / "memory.stat").read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return None  # no such group, or no limit on it
    if not most.isdecimal():
        return None
    return int(most) - used + (int(found[1]) if found else 0)
