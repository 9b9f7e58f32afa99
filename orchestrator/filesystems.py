"""Free bytes and inodes of a file system for this user, including quotas."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_QUOTA_TIMEOUT_S = 10.0  # for a quota tool
_KB = 1024  # the unit of quota tools, in bytes
_YOURS, _GROUPS = "your quota", "your group's quota"
_GPFS = "/usr/lpp/mmfs/bin"  # its programs, which not every user has on PATH
_GPFS_FIELDS = (
    *("blockUsage", "blockQuota", "blockLimit", "blockGrace"),
    *("filesUsage", "filesQuota", "filesLimit", "filesGrace"),
)
# Types of file systems that other machines do not see.
_LOCAL_TYPES = frozenset({"tmpfs", "ramfs", "overlay", "squashfs"})


@dataclass(frozen=True)
class FreeSpace:
    """Free bytes and inodes (None: not limited, or not known), and what limits them."""

    bytes: int | None
    inodes: int | None
    of: str  # "the file system", "your quota"


def existing(path: Path) -> Path:
    """``path``, or the nearest folder above it that exists, or that is a dead mount."""
    for each in (path, *path.parents):
        try:
            os.lstat(each)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except OSError:
            pass  # the user of it meets the error, too
        return each
    return Path("/")


def free_space(path: Path) -> list[FreeSpace]:
    """All limits on writing below an existing ``path``; ``OSError`` if it is missing."""
    found = os.statvfs(path)
    # File systems without a fixed number of blocks or inodes report 0, in total too.
    free_bytes = found.f_bavail * found.f_frsize if found.f_blocks else None
    free_inodes = found.f_favail if found.f_files else None
    of_disk = FreeSpace(free_bytes, free_inodes, "the file system")
    known = [of_disk] if (free_bytes, free_inodes) != (None, None) else []
    group = _group_of_files_in(path)
    return [*known, *_lustre_quotas(path, group), *_gpfs_quotas(path, group), *_quotas(path)]


def bytes_in(folder: Path) -> int:
    """Bytes used by the files in ``folder``; a partial download uses less than its length."""
    try:
        with os.scandir(folder) as entries:
            return sum(512 * entry.stat().st_blocks for entry in entries if entry.is_file())
    except OSError:
        return 0


def is_read_only(path: Path) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def mount_of(path: Path) -> tuple[str, str, str]:
    """Mount point, type and device of the file system of ``path``.

    From /proc/self/mountinfo (proc(5)): the longest mount point above the path; of equal ones the
    last, which hides the others.
    """
    real, best = str(path.resolve()), ("", "", "")
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return best
    for line in lines:
        before, _, after = line.partition(" - ")
        try:
            point, (kind, device) = _unescaped(before.split()[4]), after.split()[:2]
        except (IndexError, ValueError):
            continue
        inside = point == "/" or real == point or real.startswith(point + "/")
        if inside and len(point) >= len(best[0]):
            best = (point, kind, device)
    return best


def local_type(path: Path) -> str | None:
    """The type of the file system, if other machines probably do not see it; otherwise None."""
    kind = mount_of(existing(path))[1]
    return kind if kind in _LOCAL_TYPES else None


def _unescaped(text: str) -> str:
    for octal, char in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(octal, char)
    return text


def _ask(argv: Sequence[str]) -> list[str]:
    """The lines that a quota tool prints; none if it is missing, slow or fails."""
    program = shutil.which(argv[0]) or shutil.which(argv[0], path=_GPFS)
    if program is None:
        return []
    try:
        done = subprocess.run(
            [program, *argv[1:]],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_QUOTA_TIMEOUT_S,
            env=os.environ | {"LC_ALL": "C"},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    # quota(1) exits with 1 if a quota is exceeded, which is a valid answer.
    return done.stdout.decode("utf-8", "replace").splitlines()


def _group_of_files_in(path: Path) -> int:
    """The group that new files get: that of the folder, if the folder passes it on."""
    try:
        status = path.stat()
    except OSError:
        return os.getegid()
    return status.st_gid if status.st_mode & stat.S_ISGID else os.getegid()


def _lustre_quotas(path: Path, group: int) -> Iterator[FreeSpace]:
    """``lfs quota -q``: mount, kbytes, quota, limit, grace, files, quota, limit, grace (lfs(1)).

    Of the project too that ``lfs project -d`` names: project, P if inherited, path.
    """
    whose = [("-u", os.geteuid(), _YOURS), ("-g", group, _GROUPS)]
    project = " ".join(_ask(["lfs", "project", "-d", str(path)])).split()[:1]
    if project and project[0].isdecimal() and int(project[0]):
        whose.append(("-p", int(project[0]), "the project's quota"))
    for option, number, name in whose:
        words = " ".join(_ask(["lfs", "quota", "-q", option, str(number), str(path)])).split()
        if len(words) >= 9:
            yield from _quota_left(words[1:9], name)


def _gpfs_quotas(path: Path, group: int) -> Iterator[FreeSpace]:
    """``mmlsquota -Y``: lines with colons, the first with the names of the fields; sizes in kB.

    https://www.ibm.com/docs/en/storage-scale/5.2.0?topic=reference-mmlsquota-command
    Quotas of users and groups may be one for each fileset, which ``mmlsattr -L`` names.
    """
    _, kind, device = mount_of(path)
    if kind != "gpfs":
        return
    device = device.rpartition("/")[2]
    attributes = (line.partition(":") for line in _ask(["mmlsattr", "-L", str(path)]))
    fileset = next((value.strip() for key, _, value in attributes if key == "fileset name"), "")
    whose = [([], _YOURS), (["-g", str(group)], _GROUPS)]
    if fileset:
        whose.append((["-j", fileset], f"the quota of the fileset {fileset}"))
    for options, name in whose:
        lines = [line.split(":") for line in _ask(["mmlsquota", "-Y", *options, device])]
        header = next((fields for fields in lines if "HEADER" in fields[:3]), [])
        for fields in lines:
            row = dict(zip(header, fields, strict=False))
            if fields != header and row.get("filesetname", "") in ("", fileset):
                yield from _quota_left([row.get(field, "") for field in _GPFS_FIELDS], name)


def _quotas(path: Path) -> Iterator[FreeSpace]:
    """``quota -w -p``: device, blocks, their quota, limit, grace, and so for files (quota(1))."""
    device = mount_of(path)[2]
    for option, name in (("-u", _YOURS), ("-g", _GROUPS)):
        for line in _ask(["quota", "-w", "-p", "-v", option]):
            words = line.split()
            if len(words) == 9 and words[0] == device:
                yield from _quota_left(words[1:], name)


def _quota_left(words: Sequence[str], name: str) -> Iterator[FreeSpace]:
    """Parse used, soft and hard limit, grace, for bytes and then for files; * marks an excess."""
    left = []
    for place, unit in ((0, _KB), (4, 1)):
        try:
            used, soft, hard = (int(word.strip("*[]")) for word in words[place : place + 3])
        except ValueError:
            return
        most = hard or soft
        left.append(max(0, most - used) * unit if most else None)
    if left != [None, None]:
        yield FreeSpace(left[0], left[1], name)
