"""A real, private Slurm: started in a temporary folder in seconds, by any user, without traces.

Several may run at the same time; nothing global is changed. Clients find it by `PrivateSlurm.env`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tests.support.cluster import slurmconf
from tests.support.cluster.guard import Guard
from tests.support.cluster.ports import Ports
from tests.support.cluster.slurmconf import Layout

DAEMONS = ("slurmctld", "slurmd", "munged")
CLIENTS = ("sbatch", "squeue", "scontrol", "scancel", "sinfo")
ACCOUNTING = ("slurmdbd", "mariadbd", "sacct")
START_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class QueueRow:
    """One job or array task as squeue shows it (`squeue -r`)."""

    job_id: str  # 12 or 12_3
    state: str  # PENDING, RUNNING, …
    reason: str  # None, Dependency, JobArrayTaskLimit, …
    node: str  # empty while pending
    name: str


def find(program: str) -> str | None:
    """The path of a program; daemons live where an ordinary user's PATH does not look."""
    path = os.environ.get("PATH", os.defpath)
    return shutil.which(program, path=f"{path}:/usr/local/sbin:/usr/sbin:/sbin")


def available(*, accounting: bool = True, cgroup: bool = False) -> str | None:
    """Why a private Slurm cannot run here, or None if it can."""
    wanted = DAEMONS + CLIENTS + (ACCOUNTING if accounting else ())
    absent = [name for name in wanted if find(name) is None]
    if absent:
        return (
            f"no private Slurm here: {', '.join(absent)} not installed "
            "(on Debian or Ubuntu: slurmctld slurmd slurm-client munge slurmdbd "
            "mariadb-server-core; `make test` installs them as root)"
        )
    if accounting and not any(path.exists() for path in slurmconf.SYSTEM_TABLES):
        return "no private Slurm with accounting here: MariaDB's mysql_system_tables.sql is absent"
    if cgroup and os.geteuid() != 0:
        return "no private Slurm with memory limits here: cgroups need root"
    if cgroup and not os.access(slurmconf.MEMORY_CGROUP, os.W_OK):
        return (
            f"no private Slurm with memory limits here: {slurmconf.MEMORY_CGROUP} is not writable"
        )
    return None


def skip_unless_available(*, accounting: bool, cgroup: bool = False) -> None:
    """Skip the test where such a private Slurm cannot run."""
    import pytest  # only here: to start one takes nothing but a Python

    if reason := available(accounting=accounting, cgroup=cgroup):
        pytest.skip(reason)


def version() -> str:
    """The version of the Slurm that would be started (24.11.5); empty where there is none."""
    program = find("slurmctld")
    if program is None:
        return ""
    said = subprocess.run([program, "-V"], capture_output=True, text=True, check=False).stdout
    return said.strip().rpartition(" ")[2]


def clean_environment() -> dict[str, str]:
    """This process's environment without what an outer Slurm job may have left in it."""
    foreign = ("SLURM_", "SLURMD_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SINFO_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


class PrivateSlurm:
    """A running Slurm of our own; use it as a context manager, or call `stop`."""

    def __init__(self, layout: Layout, ports: Ports) -> None:
        self.layout = layout
        self.nodes = layout.nodes
        self.env = {
            "SLURM_CONF": str(layout.conf),
            "MYSQL_UNIX_PORT": str(layout.database_socket),
        }
        """What a process needs in its environment to be a client of this Slurm."""
        self._ports = ports
        self._guards: dict[str, Guard] = {}

    # Starting and stopping ---------------------------------------------------------------

    @classmethod
    def start(
        cls,
        folder: Path | None = None,
        *,
        nodes: int = 4,
        accounting: bool = True,
        slurmd_timeout: int = 30,
        extra_conf: str = "",
        cgroup: bool = False,
        cluster: str = "websight",
        sibling: PrivateSlurm | None = None,
    ) -> PrivateSlurm:
        """Start one; it accepts jobs and all its nodes are idle when this returns.

        `folder` is made if need be and removed by `stop`; its path must be short, for Unix
        sockets live in it. `cgroup=True` needs root, and makes memory limits real. `sibling` is
        a cluster of another name whose accounting this one joins, so that each can ask the other
        with `-M`; it has to be stopped later.
        """
        accounting = accounting or sibling is not None
        reason = available(accounting=accounting, cgroup=cgroup)
        if reason:
            raise RuntimeError(reason)
        if folder is None:
            folder = Path(tempfile.mkdtemp(prefix="wsl-", dir=_short_temporary_folder()))
        ports = Ports()
        port = ports.take()
        # Control groups are named after nodes, and their namespace is the whole machine's.
        prefix = f"c{port}n" if cgroup else "n"
        layout = Layout(
            folder=folder,
            nodes=tuple(f"{prefix}{number}" for number in range(1, nodes + 1)),
            controller_port=port,
            node_ports=tuple(ports.take() for _ in range(nodes)),
            database_port=_database_port(ports, sibling) if accounting else None,
            slurmd_timeout_s=slurmd_timeout,
            cgroup=cgroup,
            extra=extra_conf,
            cluster=cluster,
            sibling=sibling.layout if sibling else None,
        )
        slurm = cls(layout, ports)
        try:
            slurm._write_files()
            slurm._start_all()
        except BaseException as error:
            error.args = (f"{error}\n{slurm.log(40)}",)
            slurm.stop()
            raise
        return slurm

    def stop(self) -> None:
        """End every process, descendants and jobs too, and remove the folder."""
        for guard in self._guards.values():
            guard.request_kill()
        while self._guards:
            self._guards.popitem()[1].wait()
        self._ports.release()
        if self.layout.cgroup:
            slurmconf.remove_cgroups(self.nodes)
        shutil.rmtree(self.layout.folder, ignore_errors=True)

    def __enter__(self) -> PrivateSlurm:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # Using it ----------------------------------------------------------------------------

    def run(
        self, *argv: str | Path, check: bool = False, cwd: Path | None = None, timeout: float = 60
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as a client of this Slurm; its output is captured as text."""
        env = clean_environment() | self.env
        return subprocess.run(
            [str(word) for word in argv],
            env=env,
            check=check,
            cwd=cwd,
            timeout=timeout,
            capture_output=True,
            text=True,
        )

    def sbatch(self, script: str, *options: str, cwd: Path | None = None) -> str:
        """Submit a script of shell lines; returns the job id."""
        done = self.run(
            "sbatch", "--parsable", *options, "--wrap", script, cwd=cwd or self.layout.folder
        )
        if done.returncode:
            raise RuntimeError(f"sbatch: {done.stderr.strip()}")
        return done.stdout.strip().partition(";")[0]

    def squeue(self) -> list[QueueRow]:
        """All jobs and array tasks that are not over."""
        done = self.run("squeue", "-r", "-h", "-o", "%i|%T|%r|%N|%j", check=True)
        return [QueueRow(*line.split("|", 4)) for line in done.stdout.splitlines()]

    def job(self, job_id: str) -> dict[str, str]:
        """`scontrol show job` of one job or array task; empty if Slurm does not know it."""
        done = self.run("scontrol", "-o", "show", "job", job_id)
        words = done.stdout.split("\n", 1)[0].split()
        return {key: value for key, _, value in (word.partition("=") for word in words)}

    def wait_for(self, predicate: Callable[[], object], timeout: float = 30) -> None:
        """Wait until the predicate holds; else a TimeoutError that shows queue and logs."""
        deadline = time.monotonic() + timeout
        while not predicate():
            if time.monotonic() > deadline:
                queue = self.run("squeue", "-r").stdout
                raise TimeoutError(f"not so within {timeout} s\n{queue}\n{self.log(20)}")
            time.sleep(0.1)  # most ask squeue, which takes CPU time

    def wait_until_idle(self) -> None:
        """Wait until no job is left in the queue."""
        self.wait_for(lambda: not self.squeue(), 60)

    def log(self, tail: int = 30) -> str:
        """The last lines of every daemon's log, for the message of a failing test."""
        parts = []
        for path in sorted(self.layout.logs.glob("*")):
            if path.suffix == ".out" and path.with_suffix(".log").exists():
                continue  # Slurm's daemons say the same in their own log
            lines = path.read_text(errors="replace").splitlines()
            if lines:
                parts.append("\n".join([f"--- {path.name}", *lines[-tail:]]))
        return "\n".join(parts)

    def pids(self) -> list[int]:
        """Every process of this Slurm, its jobs' included."""
        return [pid for guard in self._guards.values() for pid in guard.descendants()]

    # Faults ------------------------------------------------------------------------------

    def stop_slurmctld(self, *, abruptly: bool = False) -> None:
        """End the controller: in order, its state saved; or abruptly, as a crash would."""
        self._end_daemon("slurmctld", abruptly=abruptly)

    def start_slurmctld(self) -> None:
        """Start the controller on the state that it left; returns when it responds."""
        self._spawn("slurmctld", "-D")
        self._wait_port(self.layout.controller_port, "slurmctld")
        self._wait("slurmctld", lambda: " is UP" in self.run("scontrol", "ping").stdout)

    def stop_slurmdbd(self) -> None:
        """End the accounting daemon; its database stays."""
        self._end_daemon("slurmdbd")

    def start_slurmdbd(self) -> None:
        """Start the accounting daemon; returns when it responds."""
        assert self.layout.database_port is not None, "this Slurm has no accounting"
        self._spawn("slurmdbd", "-D")
        self._wait_port(self.layout.database_port, "slurmdbd")

    def power_cut(self, node: str) -> None:
        """Kill a node's slurmd, its steps and all processes of its jobs, at once."""
        self._guards.pop(node).end()

    def restart_node(self, node: str) -> None:
        """Bring a node up, after `power_cut` or in place of the running slurmd."""
        if node in self._guards:
            self.power_cut(node)
        self._spawn_node(node)
        self._wait(node, lambda: node in self._usable_nodes())

    # How it is done ----------------------------------------------------------------------

    def _write_files(self) -> None:
        at = self.layout
        for name in ("", "state", "log", "db", "tmp", *at.nodes):
            (at.folder / name).mkdir(mode=0o755, parents=True, exist_ok=True)
        at.folder.chmod(0o755)
        at.conf.write_text(slurmconf.slurm_conf(at))
        if at.cgroup:
            (at.folder / "cgroup.conf").write_text(slurmconf.cgroup_conf())
        if at.sibling is not None:
            return
        if at.database_port is not None:
            self._write_secret("slurmdbd.conf", slurmconf.slurmdbd_conf(at).encode())
        self._write_secret("munge.key", os.urandom(128))

    def _write_secret(self, name: str, data: bytes) -> None:
        path = self.layout.folder / name
        path.touch(mode=0o600)
        path.write_bytes(data)

    def _start_all(self) -> None:
        if self.layout.sibling is None:
            self._start_munged()
            if self.layout.database_port is not None:
                self._start_database()
                self.start_slurmdbd()
        self.start_slurmctld()
        for node in self.nodes:
            self._spawn_node(node)
        self._wait("nodes", lambda: self._usable_nodes() == set(self.nodes))

    def _start_munged(self) -> None:
        at = self.layout
        self._spawn(
            "munged",
            "--foreground",
            "--force",
            f"--socket={at.munge_socket}",
            f"--key-file={at.folder}/munge.key",
            f"--log-file={at.logs}/munged.log",
            f"--pid-file={at.folder}/munged.pid",
            f"--seed-file={at.folder}/munge.seed",
        )
        self._wait("munged", at.munge_socket.exists)

    def _start_database(self) -> None:
        at = self.layout
        # A server that starts removes all temporary tables in its folder for them, and one whose
        # tables are removed crashes: each has a folder of its own.
        folders = (f"--datadir={at.folder}/db", f"--tmpdir={at.folder}/tmp")
        options = [*slurmconf.DATABASE_OPTIONS, *folders]
        if os.geteuid() == 0:
            options.append("--user=root")
        program = find("mariadbd")
        assert program is not None
        with (at.logs / "mariadb-bootstrap.log").open("wb") as log:
            subprocess.run(
                [program, *options, "--bootstrap"],
                input=slurmconf.bootstrap_sql().encode(),
                stdout=log,
                stderr=log,
                check=True,
                timeout=START_TIMEOUT_S,
            )
        self._spawn(
            "mariadbd",
            *options,
            f"--socket={at.database_socket}",
            "--skip-networking",
            "--skip-grant-tables",
        )
        self._wait("mariadbd", lambda: _listens(str(at.database_socket)))

    def _spawn_node(self, node: str) -> None:
        self._spawn("slurmd", "-D", "-N", node, name=node)

    def _spawn(self, program: str, *options: str, name: str | None = None) -> None:
        path = find(program)
        assert path is not None
        name = name or program
        log = self.layout.logs / f"{name}.out"
        env = clean_environment() | self.env
        self._guards[name] = Guard.start([path, *options], env=env, log=log)

    def _end_daemon(self, name: str, *, abruptly: bool = False) -> None:
        guard = self._guards.pop(name)
        if not abruptly:
            guard.signal(signal.SIGTERM)
            deadline = time.monotonic() + 10
            while guard.alive and time.monotonic() < deadline:
                time.sleep(0.01)
        guard.end()

    def _usable_nodes(self) -> set[str]:
        done = self.run("sinfo", "-h", "-N", "-p", "main", "-o", "%N %T")
        rows = (line.split() for line in done.stdout.splitlines())
        return {row[0] for row in rows if row[1] in ("idle", "mixed", "allocated")}

    def _wait_port(self, port: int, name: str) -> None:
        self._wait(name, lambda: _listens(("127.0.0.1", port)))

    def _wait(self, name: str, ready: Callable[[], object]) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not ready():
            guard = self._guards.get(name)
            if guard is not None and not guard.alive:
                raise RuntimeError(f"{name} ended while it was starting")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} is not up after {START_TIMEOUT_S:.0f} s")
            time.sleep(0.01)


def _database_port(ports: Ports, sibling: PrivateSlurm | None) -> int:
    if sibling is None:
        return ports.take()
    assert sibling.layout.database_port is not None, "the sibling has no accounting to join"
    return sibling.layout.database_port


def _short_temporary_folder() -> str:
    """Unix sockets allow 107 bytes for a path; fall back where TMPDIR is deep."""
    folder = tempfile.gettempdir()
    return folder if len(folder) < 50 else "/tmp"


def _listens(address: str | tuple[str, int]) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as probe, contextlib.suppress(OSError):
        probe.connect(address)
        return True
    return False
