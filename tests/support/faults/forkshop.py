"""A process that has imported everything and runs the command line in forks of itself, with faults.

A command with its tasks costs a tenth of what fresh interpreters cost, so that a matrix of hundreds
of faults takes seconds. What a launcher would start is forked as well; all the rest is the product.
As a program: `python -m tests.support.faults.forkshop` answers requests, one JSON object a line.
"""

from __future__ import annotations

import errno
import gc
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from jobs.model import Stage
from tests.support.cli import Cli, Done
from tests.support.faults import forkfaults, preloaded
from tests.support.faults.forkfaults import Fault

ROOT = Path(__file__).resolve().parents[3]
ORPHANS_S = 2.0  # what a command started has ended so long after it, or is an orphan
_ENDS_S = 60.0  # a command that takes longer hangs
_PR_SET_CHILD_SUBREAPER = 36  # <linux/prctl.h>
# filelock, which is imported, refuses with Python 3.12 and later that two threads fork at once.
_FORKING = threading.Lock()


@dataclass(frozen=True)
class Ended(Done):
    """How a command ended, whether its fault came, and how many processes it left behind."""

    fired: bool
    orphans: int


class Shop:
    """A running shop; ``prefix`` is a command that runs it, such as `unshare -m`."""

    def __init__(self, *prefix: str) -> None:
        self._process = subprocess.Popen(
            [*prefix, sys.executable, "-m", "tests.support.faults.forkshop"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if "PYTEST" not in name},
        )
        self._asked = threading.Lock()
        self.pid = self._ask({})["pid"]

    def __enter__(self) -> Shop:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def seen(self, path: Path) -> Path:
        """A path in the shop's own mounts, as this process reaches it."""
        return Path(f"/proc/{self.pid}/root{path}")

    def do(self, *command: str | Path) -> None:
        """Run a plain program in the shop's namespaces, such as `mount`."""
        self._ask({"program": [str(word) for word in command]})

    def run(
        self, cli: Cli, *words: str | Path, fault: Fault | None = None, rc: int | None = 0
    ) -> Ended:
        """One command as ``Cli.run`` does it; ``rc`` is what it must end with (None: any)."""
        (ended,) = self.together(cli, [words], fault=fault)
        said = f"$ {' '.join(map(str, words))}  ({fault})\n{ended.out}\n{ended.err}"
        assert rc is None or ended.rc == rc, f"exit code {ended.rc}, not {rc}\n{said}"
        assert "Traceback" not in ended.err, said
        return ended

    def done(self, cli: Cli, words: Sequence[str], timeout: float) -> Ended | None:
        """One command for ``Cli.forked``; None while another one runs."""
        if self._asked.locked():
            return None
        (ended,) = self.together(cli, [words], timeout=timeout)
        if ended.rc == -signal.SIGABRT:
            raise subprocess.TimeoutExpired(list(words), timeout, ended.out, ended.err)
        return ended

    def together(
        self,
        cli: Cli,
        commands: Sequence[Sequence[str | Path]],
        *,
        fault: Fault | None = None,
        timeout: float = _ENDS_S,
    ) -> list[Ended]:
        """Several commands that start at one moment; those that last too long get SIGABRT."""
        answer = self._ask(
            {
                "commands": [[str(word) for word in words] for words in commands],
                "code": cli.code,
                "cwd": str(cli.cwd),
                "env": cli.environment(),
                "fault": asdict(fault) if fault else None,
                "timeout": timeout,
            }
        )
        return [Ended(**ended) for ended in answer["ended"]]

    def finalize(self, runs: Sequence[tuple[Path, Fault | None]]) -> list[int]:
        """The finalize stage over these run folders, one after the other; exit codes as `Popen`'s.

        Without a task around it, so that a fault's calls are those of the stage. For a fault in a
        task that packs, one packs every second shard instead.
        """
        asked = [(str(folder), asdict(fault) if fault else None) for folder, fault in runs]
        codes: list[int] = self._ask({"finalize": asked})["codes"]
        return codes

    def _ask(self, request: Mapping[str, Any]) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        with self._asked:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = json.loads(self._process.stdout.readline())
        assert "error" not in answer, answer["error"]
        return answer


# The program -------------------------------------------------------------------------------------


def _serve() -> None:
    preloaded.import_all()
    gc.freeze()  # otherwise a collection in a fork looks through all of that, and copies it
    forkfaults.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    subprocess.Popen = _popen  # type: ignore[misc,assignment]
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = _answer(request)
        except (OSError, subprocess.SubprocessError):
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), flush=True)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    if "program" in request:
        subprocess.run(request["program"], check=True, stdin=subprocess.DEVNULL)
        return {}
    if "finalize" in request:
        return {"codes": [_finalized(*asked) for asked in request["finalize"]]}
    if "commands" not in request:
        return {"pid": os.getpid()}
    fault = Fault(**request["fault"]) if request["fault"] else None
    with tempfile.TemporaryDirectory() as scratch:
        fired = Path(scratch) / "fired"
        gate, opener = os.pipe()
        pids = []
        for number, words in enumerate(request["commands"]):
            out = [open(f"{scratch}/{number}.{name}", "wb") for name in ("out", "err")]  # noqa: SIM115
            pid = os.fork()
            if pid == 0:
                os.close(opener)
                os.read(gate, 1)
                forkfaults.prepare(fault, fired)
                _end(_command, words, [file.fileno() for file in out], request)
            pids.append(pid)
            for file in out:
                file.close()
        os.close(opener)
        os.close(gate)
        codes = [_wait(pid, request["timeout"]) for pid in pids]
        orphans = _orphans()
        return {
            "ended": [
                {
                    "rc": code,
                    "out": Path(f"{scratch}/{number}.out").read_text(),
                    "err": Path(f"{scratch}/{number}.err").read_text(),
                    "fired": fired.exists(),
                    "orphans": orphans,
                }
                for number, code in enumerate(codes)
            ]
        }


def _finalized(folder: str, fault: dict[str, Any] | None) -> int:
    pid = os.fork()
    if pid == 0:
        forkfaults.prepare(Fault(**fault) if fault else None)
        stage = fault["where"] if fault else Stage.FINALIZE.value
        _end(_finalize, Path(folder), stage)
    return _wait(pid, _ENDS_S)


def _finalize(path: Path, stage: str) -> None:
    from jobs.finalize.pack import Share
    from jobs.finalize.stage import run_finalize, run_pack
    from jobs.runtime.progress import Progress
    from jobs.storage.run_folder import RunFolder

    folder = RunFolder(path)
    plan = folder.load_plan()
    os.fork = _refused  # shards are then packed here, so that a fault may come in the middle of one
    forkfaults.enter(stage, 0)
    if stage == Stage.PACK.value:
        run_pack(folder, plan, Share(0, 2), Progress(), name="pack-1-0")
    else:
        run_finalize(folder, plan, Progress())


def _refused() -> int:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _wait(pid: int, seconds: float) -> int:
    deadline = time.monotonic() + seconds
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGABRT)  # with faulthandler, its stack is in what it said
        _pause()


def _pause() -> None:
    select.select([], [], [], 0.002)  # not `sleep`, which a faked clock confuses


def _orphans() -> int:
    """Children of ended commands, which are this process's now, that do not end by themselves."""
    deadline = time.monotonic() + ORPHANS_S
    while time.monotonic() < deadline:
        try:
            ended, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return 0
        if not ended:
            _pause()
    left = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    for pid in left:
        os.kill(int(pid), signal.SIGKILL)
        os.waitpid(int(pid), 0)
    return len(left)


def _command(words: list[str], out: list[int], request: dict[str, Any]) -> int:
    from orchestrator import cli

    _become([os.open(os.devnull, os.O_RDONLY), *out])
    _enter(request["cwd"], request["env"])
    forkfaults.enter("launcher", 0)
    if request["code"]:
        sys.argv = ["-c", *words]
        exec(request["code"], {"__name__": "__main__"})
        return 0
    return cli.main(words)


def _end(function: Any, *arguments: Any) -> None:
    """Call it as an interpreter calls its program, and end this process as one does."""
    code: Any = 1
    try:
        code = function(*arguments) or 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001  # an interpreter prints it and exits with 1
        sys.excepthook(*sys.exc_info())
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        pass
    os._exit(code)


def _become(standard: Sequence[int]) -> None:
    """Take these as standard streams and let go of all other files and of signal handlers."""
    kept = [os.dup(fd) for fd in standard]
    for target, fd in enumerate(kept):
        os.dup2(fd, target)
    os.closerange(3, 4096)
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(number, signal.SIG_DFL)


def _enter(cwd: str | Path | None, env: Mapping[str, str] | None) -> None:
    if cwd is not None:
        os.chdir(cwd)
        sys.path[0] = str(cwd)  # as `python -m` has it
    if env is not None:
        os.environ.clear()
        os.environ.update(env)


# What the product starts -------------------------------------------------------------------------

_Popen = subprocess.Popen


def _popen(command: Any, **options: Any) -> Any:
    """Fork for the product's own children; start what else there is."""
    if list(command[:1]) == [sys.executable]:
        if "orchestrator.engines.local.task_starter" in command:
            return _Forked(_starter, command, **options)
        if "-c" in command and "jobs.extract.child_process" in command[command.index("-c") + 1]:
            return _Forked(_extraction, command, **options)
    return _Popen(command, **options)


def _starter(command: Sequence[str]) -> None:
    from orchestrator.engines.local import task_starter

    run = task_starter.run_task

    def run_task(start: task_starter.Start) -> None:
        number, _, stage = Path(start.folder).name.partition("-")
        forkfaults.enter(stage, int(number))
        run(start)

    task_starter.run_task = run_task
    sys.argv = ["task_starter", *command[command.index(task_starter.__name__) + 1 :]]
    task_starter.main()


def _extraction(command: Sequence[str]) -> None:
    from jobs.extract import child_process

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    forkfaults.enter("extraction", forkfaults.attempt())
    sys.argv = ["-c", *command[command.index("-c") + 2 :]]
    child_process.main()


def _child(inner: list[int], cwd: Any, env: Any, main: Any, command: Sequence[str]) -> None:
    _become(inner)
    _enter(cwd, env)
    main(command)


class _Forked:
    """As much of a `Popen` as the product uses."""

    def __init__(
        self,
        main: Any,
        command: Sequence[str],
        *,
        stdin: Any = None,
        stdout: Any = None,
        stderr: Any = None,
        cwd: Any = None,
        env: Any = None,
        start_new_session: bool = False,
        bufsize: int = -1,
    ) -> None:
        inner, self._ours = [], []
        for place, asked in enumerate((stdin, stdout, stderr)):
            if asked == subprocess.PIPE:
                pipe = os.pipe()
                inner.append(pipe[place > 0])
                self._ours.append(open(pipe[place == 0], "wb" if place == 0 else "rb", buffering=0))  # noqa: SIM115
            elif asked == subprocess.DEVNULL:
                inner.append(os.open(os.devnull, os.O_RDWR))
            else:
                inner.append(os.dup(place if asked is None else asked.fileno()))
        if stdin == subprocess.PIPE:
            self.stdin, self.stdout, *errors = self._ours
            self.stderr = errors[0] if errors else None
        self.returncode: int | None = None
        with _FORKING:
            self.pid = os.fork()
        if self.pid == 0:
            if start_new_session:
                os.setsid()
            _end(_child, inner, cwd, env, main, command)
        for fd in inner:
            os.close(fd)

    def poll(self) -> int | None:
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self, timeout: float = _ENDS_S) -> int:
        deadline = time.monotonic() + timeout
        while (code := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("forked", timeout)
            _pause()
        return code

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


if __name__ == "__main__":
    _serve()
