"""Transfers against `curl` and `aria2c`, from one nginx on the loopback, interleaved.

    python -m benchmarks.transfer [--rounds 5] [--folder DIR]

Our side hashes (SHA-256) and calls fsync, the others do neither. Prints medians and
ratios of rates; the goals are 0.8 of curl (one file), 0.9 of aria2c (both
other cases).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from benchmarks.common import compare, table

_ONE = 1 << 30  # bytes of the one file, unthrottled
_SLOW = 512 << 20  # of the throttled one
_MANY, _EACH = 200, 5_000_000

# In a process of its own, like the others: starting Python counts, and its memory is measured.
_OURS = """
import resource, sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from jobs.runtime.progress import Progress
from jobs.transfer.target import Target
from jobs.transfer.transfer import Transfer
base, out, size, *names = sys.argv[1:]
by = Transfer(8, progress=Progress())
def one(name):
    by.fetch(lambda: Target(base + name), Path(out) / name, name=name, size=int(size), digest=None)
with ThreadPoolExecutor(8) as pool:
    list(pool.map(one, names))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@contextlib.contextmanager
def nginx(
    root: Path, folder: Path, *, host: str = "127.0.0.1", within: Sequence[str] = ()
) -> Iterator[str]:
    """The base address of an nginx that serves ``root``, under /slow/ with 20 MB/s each.

    ``within`` begins its command, where it runs in a network namespace of its own.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    temps = " ".join(
        f"{name}_temp_path {folder}/{name};"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder}/pid; error_log {folder}/error.log; worker_processes 1;\n"
        + ("user root;\n" if os.geteuid() == 0 else "")
        + "events { worker_connections 256; }\n"
        f"http {{ access_log off; sendfile on; {temps} server {{ listen {host}:{port};\n"
        f"location / {{ root {root}; }}\n"
        f"location /slow/ {{ alias {root}/; limit_rate 20m; }} }} }}\n"
    )
    command = [*within, shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(config)]
    server = subprocess.Popen([*command, "-e", f"{folder}/error.log"])
    try:
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection((host, port)):
                break
            time.sleep(0.02)
        yield f"http://{host}:{port}/"
    finally:
        server.terminate()
        server.wait()


def _timed(command: Sequence[str], out: Path, memory: list[int] | None) -> Callable[[], float]:
    def run() -> float:
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        begun = time.perf_counter()
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        taken = time.perf_counter() - begun
        if memory is not None:
            memory.append(int(done.stdout))
        return taken

    return run


def measure(folder: Path, rounds: int) -> list[tuple[str, ...]]:
    """The table's rows."""
    root, out = folder / "root", folder / "out"
    root.mkdir()
    names = [f"{number:03d}" for number in range(_MANY)]
    sizes = {"one": _ONE, "slow": _SLOW, **dict.fromkeys(names, _EACH)}
    for name, size in sizes.items():
        with (root / name).open("wb") as file:
            while (left := size - file.tell()) > 0:
                file.write(os.urandom(min(left, 1 << 22)))
    rows: list[tuple[str, ...]] = [("case", "ours", "peer", "rate, ours / peer", "goal", "memory")]
    with nginx(root, folder) as base:
        aria = ["aria2c", "-q", "-d", str(out), "--file-allocation=none"]
        listed = folder / "list"
        listed.write_text("".join(f"{base}{name}\n" for name in names))
        cases = {
            "1 GiB, curl": (
                base,
                ["one"],
                _ONE,
                0.8,
                ["curl", "-s", "-o", f"{out}/x", f"{base}one"],
            ),
            "512 MiB at 20 MB/s a connection, aria2c -x8 -s8": (
                f"{base}slow/",
                ["slow"],
                _SLOW,
                0.9,
                [*aria, "-x8", "-s8", "-k1M", f"{base}slow/slow"],
            ),
            "200 files of 5 MB, aria2c -j8": (
                base,
                names,
                _EACH,
                0.9,
                [*aria, "-j8", "-i", str(listed)],
            ),
        }
        for case, (where, wanted, size, goal, peer) in cases.items():
            memory: list[int] = []
            ours = [sys.executable, "-c", _OURS, where, str(out), str(size), *wanted]
            taken = compare(
                {"ours": _timed(ours, out, memory), "peer": _timed(peer, out, None)}, rounds
            )
            ratio = taken["peer"] / taken["ours"]
            seconds = (f"{taken['ours']:.2f} s", f"{taken['peer']:.2f} s")
            rows.append((case, *seconds, f"{ratio:.2f}", f"{goal}", f"{max(memory)} MiB"))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", help="where to write; a file system in memory by default")
    chosen = parser.parse_args()
    where = chosen.folder or ("/dev/shm" if Path("/dev/shm").is_dir() else None)
    with tempfile.TemporaryDirectory(dir=where) as folder:
        print(table(measure(Path(folder), chosen.rounds)))


if __name__ == "__main__":
    main()
