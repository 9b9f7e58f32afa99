"""Options that several commands share, and types that parse their values."""

from __future__ import annotations

import math
import os
import shlex
import string
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from jobs.errors import RunFolderError, UsageError
from jobs.model import Plan, Resources
from jobs.storage.run_folder import DEFAULT_LOG_DIR
from orchestrator import filesystems, units
from orchestrator.engines.slurm import arguments

F = TypeVar("F", bound=Callable[..., Any])


if TYPE_CHECKING:
    _ParamType = click.ParamType[object]
else:
    _ParamType = click.ParamType  # generic only in Click's stubs and newest versions


class Parsed(_ParamType):
    """A value that a function parses, or refuses with a ``UsageError``."""

    def __init__(self, name: str, parse: Callable[[str], object]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> object:
        if not isinstance(value, str):
            return value
        try:
            return self._parse(value)
        except UsageError as error:
            self.fail(error.message, param, ctx)


def clean(text: str) -> str:
    """``text``, if it is safe in a batch script: a line break would start another line."""
    if not text.isprintable():
        raise UsageError(f"{text!r} contains a control character; write it on one line")
    return text


def command(text: str) -> str:
    """``text``, if a shell can split it into words."""
    try:
        words = shlex.split(clean(text))
    except ValueError as error:
        raise UsageError(f"{text!r} cannot be read ({error})") from error
    if not words:
        raise UsageError("no command is given; is a variable empty?")
    return text


def encoding(text: str) -> str:
    """The name of an encoding that Python supports and that is a superset of ASCII."""
    letters = string.ascii_letters + string.digits + "./_-"
    try:
        same = letters.encode().decode(text) == letters
    except (LookupError, UnicodeError, ValueError):
        same = False
    if not same:
        raise UsageError(
            f"{text!r} is not a known text encoding; use Python's name, such as cp437, cp850, "
            "cp866, cp932 (Japanese), gbk, big5, euc_kr, cp1251, …"
        )
    return text


TIME = Parsed("time", units.parse_limit)
MEMORY = Parsed("size", units.parse_mem)
SIZE = Parsed("size", units.parse_size)
WORD = Parsed("text", clean)
LINE = Parsed("line", clean)
ENCODING = Parsed("name", encoding)
COMMAND = Parsed("words", command)
SBATCH = Parsed("line", arguments.parse)
SBATCH_DOWNLOAD = Parsed("line", arguments.parse_for_download)


class _Place(click.Path):
    """A path with ``~`` for the home folder; an empty one is an error, not the current folder."""

    def convert(
        self,
        value: str | os.PathLike[str],
        param: click.Parameter | None,
        ctx: click.Context | None,
    ) -> Any:
        text = os.fspath(value)
        if not text:
            self.fail("the path is empty; is a variable not set?", param, ctx)
        try:
            text.encode()
            return Path(os.fsdecode(super().convert(Path(text).expanduser(), param, ctx)))
        except UnicodeEncodeError:
            self.fail(f"{text!r} is not UTF-8; rename it, or give a link to it", param, ctx)
        except RuntimeError:
            self.fail(f"{text!r} names a user whose home folder is unknown", param, ctx)


class Number(click.FloatRange):
    """A finite number."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


FOLDER = _Place(path_type=Path)
POSITIVE = click.IntRange(min=1)
ENGINE = click.Choice(["auto", "slurm", "local"])


flag = partial(click.option, is_flag=True)
repeated = partial(click.option, multiple=True)


def stack(*options: Callable[[F], F], title: str = "") -> Callable[[F], F]:
    """Several options as one decorator, shown in the order written, under ``title``."""

    def decorate(function: F) -> F:
        for each in reversed(options):
            function = each(function)
            if title:
                function.__click_params__[-1].title = title  # type: ignore[attr-defined]
        return function

    return decorate


def typed_only(*options: Callable[[F], F]) -> Callable[[F], F]:
    """Several options, of which settings have no effect in this command (``settings.spellings``).

    Settings are for the next launch: a run that exists keeps what it was launched with, and a
    launch's option can have other values or another meaning here.
    """

    def decorate(function: F) -> F:
        before = len(getattr(function, "__click_params__", ()))
        function = stack(*options)(function)
        for param in function.__click_params__[before:]:  # type: ignore[attr-defined]
            param.only_typed = True
        return function

    return decorate


def one_of(
    name: str, values: Iterable[Enum], help: str, default: Enum | None = None
) -> Callable[[F], F]:
    """An option that takes one of these values of an enumeration."""
    known = {each.value: each for each in values}
    return click.option(
        name,
        type=click.Choice(list(known)),
        default=default.value if default else None,
        callback=lambda ctx, param, value: known.get(value),
        help=help,
    )


class Titled(click.Command):
    """A command whose help page shows its options under their titles."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        titled: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            row = param.get_help_record(ctx) if isinstance(param, click.Option) else None
            if row is not None:
                titled.setdefault(getattr(param, "title", "Options"), []).append(row)
        for title, rows in titled.items():
            with formatter.section(title):
                formatter.write_dl(rows)


log_dir = click.option(
    "--log-dir",
    help="Folder of the run folders; compute nodes must see it too.",
    type=FOLDER,
    default=DEFAULT_LOG_DIR,
)


engine = click.option(
    "--engine",
    help="auto: Slurm if sbatch is found, otherwise this machine.",
    type=ENGINE,
    default="auto",
)


def _errors_too(ctx: click.Context, param: click.Parameter, value: bool) -> bool:
    """Also print errors as JSON, if the command line or the settings ask for JSON."""
    if ctx.obj is not None:
        ctx.obj.as_json = ctx.obj.as_json or value
    return value


as_json = flag(
    "--json", "as_json", help="Print one JSON object.", is_eager=True, callback=_errors_too
)
parsable = flag("--parsable", help="Print only the id of the finalize job (the last of the run).")
yes = flag("-y", "--yes", help="Start without asking for confirmation.")
wait = click.option(
    "--wait/--no-wait",
    help="Wait until a run on Slurm has ended, and show its state.",
    default=False,
)


@dataclass(frozen=True)
class OutputMode:
    """The output of a launch, and whether it waits for the run."""

    dry_run: bool
    wait: bool
    yes: bool
    as_json: bool
    parsable: bool

    def __post_init__(self) -> None:
        if self.as_json and self.parsable:
            raise UsageError("--json and --parsable cannot be combined; choose one")

    @classmethod
    def take(cls, values: dict[str, Any]) -> OutputMode:
        """Remove these options from a command's ``values``."""
        return cls(**{name: values.pop(name) for name in cls.__dataclass_fields__})

    @property
    def quiet(self) -> bool:
        return self.as_json or self.parsable

    @property
    def hands_out_id(self) -> bool:
        """Whether a script gets the id of a job, and waits for its success.

        An automatic retry would succeed with a different id.
        """
        return self.parsable and not self.wait

    @property
    def asks(self) -> bool:
        """Whether to ask the user."""
        return not (self.yes or self.quiet) and sys.stdin.isatty() and sys.stderr.isatty()


def temp_limit(default: str) -> Callable[[F], F]:
    """The ``--temp-limit`` option; ``default`` describes the default."""
    return click.option(
        "--temp-limit",
        metavar="SIZE",
        help="Maximum bytes of archives stored at a time, each deleted once it is extracted.  "
        f"[default: {default}]",
        type=SIZE,
    )


expect_records = click.option(
    "--expect-records",
    help="Fail unless the dataset has exactly this many records.",
    type=click.IntRange(min=0),
)


def _run_ids(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Runs that begin with the typed text, for shell completion."""
    from orchestrator.inspection import run_list

    try:
        names = run_list.run_ids(Path(ctx.params.get("log_dir") or DEFAULT_LOG_DIR))
    except (RunFolderError, OSError):
        names = []
    return [name for name in names if name.startswith(incomplete)]


run = click.argument("run", required=False, shell_complete=_run_ids)

slurm = stack(
    click.option("-p", "--partition", help="Partition.", type=WORD),
    click.option("-A", "--account", help="Account.", type=WORD),
    click.option("-q", "--qos", help="Quality of service.", type=WORD),
    click.option(
        "-t",
        "--time",
        "time_min",
        metavar="TIME",
        help="Time limit of each job, in a format of sbatch.  [launch: 4:00:00]",
        type=TIME,
    ),
    click.option(
        "-c", "--cpus-per-task", "cpus", help="Cores per task.  [launch: 2]", type=POSITIVE
    ),
    click.option(
        "--mem", "mem_mb", metavar="SIZE", help="Memory per task, such as 8G.", type=MEMORY
    ),
    click.option("-C", "--constraint", help="Features required of a node.", type=WORD),
    # sbatch's name is --exclude, which here excludes files of the source.
    click.option("-x", "--exclude-nodes", "exclude", help="Nodes to exclude.", type=WORD),
    click.option("--reservation", help="Reservation.", type=WORD),
    click.option(
        "--mail-type", help="Events that Slurm sends mail for, such as END,FAIL.", type=WORD
    ),
    click.option("--mail-user", help="Address for these mails.", type=WORD),
    repeated(
        "--sbatch-arg",
        "sbatch_args",
        help="Any other sbatch option, in sbatch's own spelling; may be repeated.",
        type=SBATCH,
    ),
    repeated(
        "--setup",
        help="Shell line to run before each task, such as module load …; may be repeated.",
        type=LINE,
    ),
    click.option(
        "--container-image",
        metavar="IMAGE",
        help="Run tasks in this image, on a Slurm with the pyxis plugin.",
        type=WORD,
    ),
    repeated(
        "--container-mounts",
        metavar="SOURCE:TARGET",
        help="Further mounts of the image; a run's folders are always mounted. May be repeated.",
        type=WORD,
    ),
    click.option(
        "--launcher",
        metavar="PREFIX",
        help="Command that starts each task, such as 'apptainer exec image.sif'.",
        type=COMMAND,
    ),
    click.option(
        "--python",
        metavar="PATH",
        help="Python that runs the tasks and has this tool.  [default: the one that submits]",
        type=WORD,
    ),
    title="Slurm",
)

SLURM_FIELDS = Resources.__struct_fields__
OF_CONTAINERS = frozenset({"container_image", "container_mounts"})


def slurm_changes(values: dict[str, Any]) -> dict[str, Any]:
    """Remove the Slurm options from a command's ``values``; returns those that were given."""
    changes = {name: values.pop(name) for name in SLURM_FIELDS}
    ctx = click.get_current_context(silent=True)
    if changes["container_image"] is None and ctx and not is_typed(ctx, "container_mounts"):
        del changes["container_mounts"]  # settings may have them for those who use an image
    return {name: value for name, value in changes.items() if value not in (None, ())}


def with_mounts(changes: dict[str, Any], *paths: Path | None) -> dict[str, Any]:
    """The Slurm options with the mounts that a container needs for these folders of a run.

    The environment of this process and the code are mounted too, but never the system's ``/usr``.
    """
    if not OF_CONTAINERS & changes.keys():
        return changes
    folders = [filesystems.existing(path.absolute()) for path in paths if path is not None]
    code = Path(__file__).resolve().parents[2]
    folders += [Path(sys.prefix), Path(sys.base_prefix), code]
    wanted = [path for path in folders if path not in (Path("/"), Path("/usr"))]
    outer = [p for p in dict.fromkeys(wanted) if not any(o in p.parents for o in wanted)]
    mounts = changes.get("container_mounts", ())
    return changes | {"container_mounts": (*mounts, *(f"{path}:{path}" for path in outer))}


def with_mounts_of(changes: dict[str, Any], plan: Plan, log_dir: Path) -> dict[str, Any]:
    """As ``with_mounts``, for a run with that plan."""
    source = Path(plan.source.locator) if plan.source.is_local else None
    return with_mounts(changes, Path(plan.dest), Path(plan.temp), log_dir, source)


def is_typed(ctx: click.Context, name: str) -> bool:
    """Whether the parameter's value is from the command line, not a default or a setting."""
    return ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE


def without_effect(ctx: click.Context, is_local: bool) -> tuple[str, ...]:
    """A note on Slurm options on the command line if this machine does the work.

    Settings are for all runs, so they are ignored without a note.
    """
    names = {*SLURM_FIELDS, "download_partition", "download_sbatch_args", "download_tasks"}
    typed = [
        param.opts[-1]
        for param in ctx.command.params
        if param.name in names and is_typed(ctx, param.name)
    ]
    if not is_local or not typed:
        return ()
    return (f"running on this machine; ignoring the Slurm options {', '.join(typed)}",)
