"""A cluster whose nodes see each other's files late, as clients of a network file system do.

Each node mounts the shared folder by sshfs in a mount namespace of its own, with caches of listings
and attributes that last longer than a test. As on NFS, a host sees what others have created once it
has created a file in the same folder itself.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cli import Cli
from tests.support.cluster.sites import Pages, published
from tests.support.cluster.slurm import PrivateSlurm, available, find

pytestmark = pytest.mark.slurm

CACHED_S = 600
SERVERS = (Path("/usr/lib/openssh/sftp-server"), Path("/usr/libexec/openssh/sftp-server"))
MOUNT = """\
#!/bin/sh
exec sshfs -o "ssh_command={server},allow_other,dcache_timeout={cached}" \\
    -o attr_timeout={cached},entry_timeout={cached} host:{store} {shared}
"""
SERVER = """\
#!/bin/sh
exec {program}
"""
NODE = """\
#!/bin/sh
exec unshare --mount --propagation private sh -c \\
    'umount "$0" && "$1" && shift && exec "$@"' {shared} {mount} {slurmd} "$@"
"""


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def _lacking(server: Path | None) -> str | None:
    if os.geteuid() != 0:
        return "only root may mount for others"
    if shutil.which("sshfs") is None or server is None:
        return "no sshfs, or no sftp-server"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "no FUSE"
    return available(accounting=False)


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cli]:
    """A shell in a folder that the nodes see late, and it sees theirs late; with its cluster."""
    program = next((path for path in SERVERS if path.exists()), None)
    lacking = _lacking(program)
    if lacking:
        pytest.skip(lacking)
    store, seen, bin_ = tmp_path / "store", tmp_path / "shared", tmp_path / "bin"
    store.mkdir()
    seen.mkdir()
    server = _script(bin_ / "server", SERVER.format(program=program))
    mount = _script(
        bin_ / "mount",
        MOUNT.format(server=server, cached=CACHED_S, store=store, shared=seen),
    )
    _script(bin_ / "slurmd", NODE.format(shared=seen, mount=mount, slurmd=find("slurmd")))
    subprocess.run([mount], check=True)
    try:
        monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
        with PrivateSlurm.start(nodes=2, accounting=False) as slurm:
            yield Cli(seen, env=slurm.env)
    finally:
        subprocess.run(["umount", "--lazy", seen], check=True)


def test_a_run_ends_and_continues_though_hosts_see_each_others_files_late(
    shared: Cli, tmp_path: Path
) -> None:
    (tmp_path / "archives").mkdir()
    pages = Pages.make(tmp_path / "archives", [20, 20, 20, 20])
    damaged = pages.archives / "shard-2.tar"
    intact = damaged.read_bytes()
    damaged.write_bytes(intact[: len(intact) // 2])
    dest = shared.cwd / "data"
    words = ("--engine", "slurm", "--yes", "--mem", "500M", "--time", "10", "--wait")
    shared.run("launch", *words, "--dest", dest, *pages.options, rc=1)
    assert shared.status()["state"] == "failed"
    damaged.write_bytes(intact)
    shared.run("resume", "--wait")
    state = shared.status()
    assert state["state"] == "done"
    assert {stage["fraction"] for stage in state["stages"].values()} == {1.0}
    assert published(tmp_path / "store" / "data") == pages.tree
