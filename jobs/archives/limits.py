"""Limits on what an archive may take: members, data bytes for each of its bytes, memory.

The memory for decompression depends on the archive's size and on the free memory:
https://docs.kernel.org/admin-guide/cgroup-v2.html#memory
https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from jobs.archives.base import too_large, unsupported
from jobs.errors import ArchiveError
from jobs.model import Options
from jobs.runtime.process import cores

# An archive may always contain this much, whatever its ratio: it fits on any disk.
FLOOR = 100_000_000  # bytes

# Decompression may always use this much; with a small archive, a task stays below 128 MiB.
# `xz -9` needs 65 MiB.
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


@dataclass(frozen=True)
class Limits:
    """The limits on one shard of ``archive_bytes``."""

    archive: str  # for messages
    archive_bytes: int
    max_members: int
    max_expansion: float

    @classmethod
    def of(cls, archive: str, archive_bytes: int, options: Options) -> Limits:
        return cls(archive, archive_bytes, options.max_members, options.max_expansion)

    @cached_property
    def most_bytes(self) -> int:
        """The most data bytes that the archive may contain."""
        return max(FLOOR, int(self.archive_bytes * self.max_expansion))

    def allow(self, members: int, total: int) -> bool:
        """Whether so many members, which claim ``total`` bytes, are within the limits."""
        return members <= self.max_members and total <= self.most_bytes

    def check_members(self, members: int) -> None:
        if members > self.max_members:
            raise too_large(
                self.archive,
                f"contains more than the {self.max_members} members allowed",
                "--max-members",
            )

    def check_claim(self, total: int, member: bytes) -> None:
        """Check ``total``: the bytes of all members up to and including this one, from headers."""
        if total > self.most_bytes:
            raise too_large(
                self.archive,
                f"expands to {total} bytes, more than {self.max_expansion:g} times the "
                f"{self.archive_bytes} bytes of the archive",
                "--max-expansion",
                member=member,
            )

    def check_inflated(self, inflated: int, consumed: int) -> None:
        """Check that ``inflated`` bytes may come from the first ``consumed`` bytes of the archive.

        This detects a bomb long before its end, because its ratio is high from the start.
        """
        if inflated > FLOOR and inflated > consumed * self.max_expansion:
            raise too_large(
                self.archive,
                f"decompresses to more than {self.max_expansion:g} times its size "
                f"({inflated} bytes from its first {consumed})",
                "--max-expansion",
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
