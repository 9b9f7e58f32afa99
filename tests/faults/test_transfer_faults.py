"""A transfer that is killed continues from there, in another process."""

from __future__ import annotations

import hashlib
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from jobs.model import Digest
from jobs.runtime.progress import Progress
from jobs.transfer.target import Target
from jobs.transfer.transfer import Transfer
from tests.support.servers import faults
from tests.support.servers.webserver import FaultyServer

MB = 1 << 20
SIZE = 48 * MB

PROGRAM = f"""
import sys
from pathlib import Path
from jobs.model import Digest
from jobs.runtime.progress import Progress
from jobs.transfer.target import Target
from jobs.transfer.transfer import Transfer
class Loud(Progress):
    def add(self, **counts):
        super().add(**counts)
        print(self.bytes_done, flush=True)
Transfer(4, progress=Loud()).fetch(
    lambda: Target(sys.argv[1]), Path(sys.argv[2]), name="x", size={SIZE},
    digest=Digest("sha256", sys.argv[3]),
)
"""


@pytest.fixture(scope="module")
def data() -> bytes:
    return random.Random(9).randbytes(SIZE)


@pytest.mark.faults
def test_after_kills_at_any_moment_only_what_was_missing_is_fetched(
    web: FaultyServer, data: bytes, tmp_path: Path
) -> None:
    sha = Digest("sha256", hashlib.sha256(data).hexdigest())
    web.put("/x", data)
    web.fail("/x", faults.throttle(20 * MB))
    out = tmp_path / "out"
    for kill_at in (5 * MB, 17 * MB, 33 * MB):
        child = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, web.url("/x"), str(out), sha.hex],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout is not None
        with child.stdout:
            for line in child.stdout:
                if int(line) >= kill_at:
                    child.kill()
                    break
        child.wait()
        assert not out.exists()
    received = Transfer(4, progress=Progress()).fetch(
        lambda: Target(web.url("/x")), out, name="x", size=SIZE, digest=sha
    )
    assert received.verified
    assert out.read_bytes() == data
    # A kill loses what the sidecar did not list yet (4 MB), and what was in transfer.
    assert web.bytes_sent("/x") < SIZE + 3 * 9 * MB


@pytest.mark.faults
def test_several_files_at_once_share_the_connections(
    web: FaultyServer, data: bytes, tmp_path: Path
) -> None:
    by = Transfer(3, progress=Progress())
    for number in range(6):
        web.put(f"/{number}", data[: (number + 1) * MB])

    def one(number: int) -> None:
        by.fetch(
            lambda: Target(web.url(f"/{number}")),
            tmp_path / str(number),
            name=str(number),
            size=(number + 1) * MB,
            digest=None,
        )

    threads = [threading.Thread(target=one, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(6):
        assert (tmp_path / str(number)).read_bytes() == data[: (number + 1) * MB]
    assert len({request.client_port for request in web.asked()}) <= 3
