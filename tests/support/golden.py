"""What two small runs leave on disk and print, as text that is the same on every machine.

`python -m tests.support.golden` writes it to `tests/golden/`, which `tests/flow/test_golden_run.py`
compares with. Run it when the form of a file changes on purpose, and read the difference.
"""

from __future__ import annotations

import os
import re
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import msgspec

from examples import samples
from tests.support.cli import Cli
from tests.support.cluster.slurm_tables import EMPTY_QUEUE

FOLDER = Path(__file__).resolve().parents[1] / "golden"

# Slurm's commands as far as `launch` needs them: sbatch counts jobs, the others answer briefly.
_SLURM = {
    "sbatch": 'case "$1" in --version) echo slurm 22.05.8; exit;; esac\n'
    'n=$(cat "$0.jobs" 2>/dev/null || echo 100); n=$((n + 1)); echo $n | tee "$0.jobs"',
    "scontrol": 'case "$*" in ping) echo "Slurmctld(primary) at login1 is UP";; '
    '"show config") echo "MaxArraySize = 1001"; echo "ClusterName = sample"; '
    'echo "SlurmctldHost[0] = login1";; esac',
    "srun": "exit 1",
    "squeue": EMPTY_QUEUE,
    "sacct": "exit 1",
    "sinfo": "exit 0",
}

# What differs from run to run or from machine to machine, in the order it is replaced in.
_VARIABLE = (
    (r"\d{8}-\d{6}-[0-9a-f]{6}", "RUN_ID"),
    (r"local-HOST-\d+-\d+", "local-HOST-PID-START"),
    (r'"HOST:\d+:\d+"', '"HOST:PID:START"'),
    (r'("(?:version|planned_by)": ?)"[^"]+"', r'\1"VERSION"'),
    (r'("(?:pid|start|peak_rss_bytes|extracted_bytes)": ?)"?\d+"?', r"\1N"),
    (r'("(?:cpu_s|busy_s|elapsed_s)": ?)[\d.e-]+', r"\1SECONDS"),
    (r'("(?:bytes_per_s|bytes_s|files_s)": ?)(?:null|[\d.e+]+)', r"\1RATE"),
    (r'("mtimes_ns": ?\[)[\s\d,]+\]', r"\1N]"),
)


def texts(folder: Path) -> dict[str, str]:
    """Make the runs in an empty folder: the golden files' contents by their names."""
    shell = Cli(folder, under=("sh", "-c", 'umask 022 && exec "$@"', "sh"))
    source = _source(folder / "source")
    words = ["launch", "--local-path", str(source), "--part-size", "12K", "-c", "1", "--yes"]
    dest = folder / "data"
    shell.run(
        *words, "--dest", dest, "--engine", "local", "--tasks", "4", "--parallel", "1", "--wait"
    )
    [done] = shell.runs()
    found = {
        "run_folder.txt": _tree(done),
        "dataset.txt": _listing(dest),
        "RECEIPT.json": (dest / "RECEIPT.json").read_text(),
        "MANIFEST.jsonl": (dest / "MANIFEST.jsonl").read_text(),
        "status.json": shell.run("status", "--json").out,
    }
    cluster = shell.having(PATH=f"{_slurm(folder / 'bin')}:{os.environ['PATH']}")
    asked = ["-p", "main", "-A", "lab", "--mem", "4G", "-t", "1:30:00", "--setup", "module load x"]
    # Incomplete: no job of it is in the queue.
    cluster.run(*words, *asked, "--dest", folder / "other", "--engine", "slurm", "--parsable", rc=1)
    found["slurm_run_folder.txt"] = _tree(shell.runs()[-1])
    return {name: _same_everywhere(text, folder) for name, text in found.items()}


def _source(folder: Path) -> Path:
    """Two tars, of which one is compressed and long enough for several parts, and a loose file."""
    folder.mkdir()
    for index, count in enumerate((8, 2)):
        pages = [f"images/{index}{n}.png" for n in range(count)]
        lines = "".join(f'{{"image": "{page}", "prompt": "page {page}"}}\n' for page in pages)
        members = [("prompts.jsonl", lines.encode())]
        members += [(page, samples.marked(samples.PIXEL, f"{page} " * 60)) for page in pages]
        samples.write_archive(folder / f"pages-{index}.tar", members, "tar")
    plain = folder / "pages-0.tar"
    (folder / "pages-0.tar.gz").write_bytes(_stored_gzip(plain.read_bytes()))
    plain.unlink()
    (folder / "README.md").write_text("# Pages\n")
    return folder


def _stored_gzip(data: bytes) -> bytes:
    """A gzip member of stored blocks (RFC 1951, 3.2.4): one form, whatever compresses."""
    size = len(data)
    assert size < 1 << 16
    block = struct.pack("<BHH", 1, size, size ^ 0xFFFF) + data
    head = bytes.fromhex("1f8b08000000000000ff")
    return head + block + struct.pack("<II", zlib.crc32(data), size)


def _slurm(folder: Path) -> Path:
    folder.mkdir()
    for name, script in _SLURM.items():
        program = folder / name
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    return folder


def _tree(folder: Path) -> str:
    """Every file below a folder with its permissions and its content."""
    return "".join(
        f"=== {path.relative_to(folder)} {path.stat().st_mode & 0o777:o}\n{_content(path)}\n"
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    )


def _listing(folder: Path) -> str:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return "".join(
        f"{path.relative_to(folder)} {path.stat().st_mode & 0o777:o}\n" for path in paths
    )


def _content(path: Path) -> str:
    if path.name.endswith("_log.err"):
        # Several threads write it, so the order of its lines means nothing.
        return "".join(sorted(_timeless(path.read_text()).splitlines(keepends=True)))
    if path.suffix != ".pkl":
        return path.read_text()
    from submitit.core.utils import pickle_load

    loaded = pickle_load(path)
    if path.name.endswith("_submitted.pkl"):
        return f"{loaded.function!r} {loaded.args} {loaded.kwargs}"
    verdict, result = loaded
    return f"{verdict} {msgspec.json.encode(result).decode()}"


def _timeless(text: str) -> str:
    return re.sub(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d([.,]\d+)?Z?", "TIME", text)


def _same_everywhere(text: str, folder: Path) -> str:
    text = text.replace(str(folder), "FOLDER").replace(sys.executable, "PYTHON")
    host = re.escape(os.uname().nodename)
    text = re.sub(rf'(?<=["=-]){host}(?=[":,-])', "HOST", text)
    text = _timeless(text)
    for pattern, stand_in in _VARIABLE:
        text = re.sub(pattern, stand_in, text)
    return text


def main() -> None:
    """Write the golden files anew."""
    with tempfile.TemporaryDirectory(prefix="golden-") as folder:
        for name, text in texts(Path(folder).resolve()).items():
            (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
