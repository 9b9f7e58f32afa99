"""The configuration files of a private Slurm, as text."""

from __future__ import annotations

import contextlib
import getpass
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

DATABASE_OPTIONS = (
    "--no-defaults",
    "--innodb-flush-method=nosync",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-doublewrite=0",
    "--innodb-log-file-size=4M",
    "--innodb-data-file-path=ibdata1:4M:autoextend",
    "--innodb-lock-wait-timeout=900",
    "--performance-schema=0",
    "--skip-log-bin",
)
"""A throw-away database: it never waits for the disk."""

MEMORY_CGROUP = Path("/sys/fs/cgroup/memory")
"""Control groups of version 1; Slurm 22.05 wants systemd for those of version 2."""

ACCOUNTING_DATABASE = "slurm_acct_db"

SYSTEM_TABLES = (
    Path("/usr/share/mysql/mysql_system_tables.sql"),
    Path("/usr/share/mariadb/mysql_system_tables.sql"),
    Path("/usr/share/mariadb/mariadb_system_tables.sql"),
)


@dataclass(frozen=True)
class Layout:
    """Where a private Slurm keeps its things, and the ports it listens on."""

    folder: Path
    nodes: tuple[str, ...]
    controller_port: int
    node_ports: tuple[int, ...]
    database_port: int | None  # of slurmdbd; None: no accounting
    slurmd_timeout_s: int
    cgroup: bool
    extra: str
    cluster: str = "websight"
    sibling: Layout | None = None  # whose munge and slurmdbd it uses in place of its own

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def munge_socket(self) -> Path:
        return (self.sibling or self).folder / "m.sock"

    @property
    def database_socket(self) -> Path:
        return self.folder / "db.sock"

    @property
    def logs(self) -> Path:
        return self.folder / "log"


def host_name() -> str:
    """The short host name, as Slurm's daemons compare it."""
    return socket.gethostname().split(".")[0]


def _loopback_host() -> bool:
    try:
        return socket.gethostbyname(host_name()) == "127.0.0.1"
    except OSError:
        return False


def slurm_conf(at: Layout) -> str:
    """slurm.conf: everything on the loopback address, quick to schedule, quick to notice.

    CR_LLN spreads jobs over the nodes, so that a small array runs on several of them.
    """
    me = getpass.getuser()
    # These flags bind to the address that the host name resolves to, which nodes cannot reach
    # unless it is the one they are configured with.
    bind = "CommunicationParameters=NoCtldInAddrAny,NoInAddrAny" if _loopback_host() else ""
    if at.cgroup:
        track = "ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup"
    else:
        track = "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none"
    if at.database_port is None:
        accounting = "AccountingStorageType=accounting_storage/none"
    else:
        accounting = (
            "AccountingStorageType=accounting_storage/slurmdbd\n"
            "AccountingStorageHost=127.0.0.1\n"
            f"AccountingStoragePort={at.database_port}\n"
            f"AccountingStoragePass={at.munge_socket}"
        )
    nodes = "\n".join(
        f"NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} "
        "CPUs=8 RealMemory=8000 State=UNKNOWN"
        for name, port in zip(at.nodes, at.node_ports, strict=True)
    )
    return f"""\
ClusterName={at.cluster}
SlurmctldHost={host_name()}(127.0.0.1)
SlurmctldPort={at.controller_port}
SlurmUser={me}
SlurmdUser={me}
AuthType=auth/munge
AuthInfo=socket={at.munge_socket},cred_expire=8
{bind}
{track}
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory,CR_LLN
DefMemPerCPU=100
SlurmdParameters=config_overrides
StateSaveLocation={at.folder}/state
SlurmdSpoolDir={at.folder}/%n
SlurmctldPidFile={at.folder}/ctld.pid
SlurmdPidFile={at.folder}/%n.pid
SlurmctldLogFile={at.logs}/slurmctld.log
SlurmdLogFile={at.logs}/%n.log
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,\
bf_min_age_reserve=0,bf_continue,default_queue_depth=1000
KillWait=1
CompleteWait=0
SlurmctldTimeout=10
SlurmdTimeout={at.slurmd_timeout_s}
MessageTimeout=10
TCPTimeout=2
ReturnToService=2
JobRequeue=1
MinJobAge=300
MaxArraySize=100001
MaxJobCount=200000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{accounting}
JobAcctGatherType=jobacct_gather/none
{nodes}
PartitionName=main Nodes=ALL Default=YES PriorityTier=1 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=10 MaxTime=INFINITE State=UP
{at.extra}
"""


def slurmdbd_conf(at: Layout) -> str:
    """slurmdbd.conf; slurmdbd insists that nobody else may read it."""
    return f"""\
AuthType=auth/munge
AuthInfo=socket={at.munge_socket}
DbdHost={host_name()}
DbdAddr=127.0.0.1
DbdPort={at.database_port}
SlurmUser={getpass.getuser()}
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc={ACCOUNTING_DATABASE}
LogFile={at.logs}/slurmdbd.log
PidFile={at.folder}/dbd.pid
CommitDelay=1
"""


def cgroup_conf() -> str:
    """cgroup.conf: memory is limited, so that OUT_OF_MEMORY can be had."""
    return """\
CgroupPlugin=cgroup/v1
CgroupMountpoint=/sys/fs/cgroup
ConstrainCores=no
ConstrainRAMSpace=yes
ConstrainSwapSpace=no
AllowedRAMSpace=100
"""


def remove_cgroups(nodes: Iterable[str]) -> None:
    """Remove the control groups that killed slurmds left behind; they must be empty."""
    for top in (path / f"slurm_{n}" for n in nodes for path in Path("/sys/fs/cgroup").iterdir()):
        for folder, _, _ in os.walk(top, topdown=False):
            with contextlib.suppress(OSError):
                Path(folder).rmdir()


def bootstrap_sql() -> str:
    """The statements that make an empty data folder a MariaDB (mariadb-install-db needs more).

    slurmdbd's own database is made as well: where slurmdbd has to make it, libmariadb 3.4.10 takes
    every later answer to have too many columns.
    """
    tables = next(path for path in SYSTEM_TABLES if path.exists())
    own = f"create database {ACCOUNTING_DATABASE};\n"
    return f"{own}create database mysql;\nuse mysql;\n{tables.read_text()}"
