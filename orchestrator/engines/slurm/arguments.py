"""Checks the user's own sbatch arguments: all options except those that this tool sets."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from jobs.errors import UsageError
from jobs.model import Resources
from jobs.storage.safe_paths import quoted
from orchestrator import units


@dataclass(frozen=True)
class _Option:
    """An option of sbatch that is not passed on as it is."""

    name: str
    letter: str
    instead: str  # what to use in its place
    field: str = ""  # of ``Resources``, if its value for the download job may differ
    read: Callable[[str], object] = str  # a value of it


_SHAPE = "each task is one process on one node, and --tasks and --parallel say how many there are"
_LOGS = "--log-dir sets the folder of logs"

# A different value would break the chain, run a task twice, or hide the results.
_OURS = (
    _Option("--array", "a", _SHAPE),
    _Option("--nodes", "N", _SHAPE),
    _Option("--ntasks", "n", _SHAPE),
    *(
        _Option(f"--ntasks-per-{each}", "", _SHAPE)
        for each in ("node", "core", "socket", "gpu", "tres")
    ),
    _Option("--output", "o", _LOGS),
    _Option("--error", "e", _LOGS),
    _Option("--input", "i", "tasks read no input"),
    _Option("--chdir", "D", _LOGS),
    _Option("--job-name", "J", "it contains the run's id"),
    _Option("--dependency", "d", "the chain's jobs wait for each other; --begin waits for a time"),
    _Option("--kill-on-invalid-dep", "", "the chain of jobs needs it"),
    _Option("--signal", "", "tasks need it to stop before their time limit"),
    _Option("--wait", "W", "--wait of this tool waits until the run has ended"),
    _Option("--parsable", "", "--parsable of this tool prints the last job's id"),
    _Option("--test-only", "", "--dry-run and `doctor` try without submitting"),
    _Option("--wrap", "", "--setup adds lines before a task, --then a script after the run"),
    _Option("--clusters", "M", "SLURM_CLUSTERS in the environment chooses one"),
    # sbatch refuses them beside --mem, which `resume` adds after a task ran out of memory.
    *(
        _Option(f"--mem-per-{each}", "", "--mem is the memory of each task")
        for each in ("cpu", "gpu")
    ),
)


def _here(
    name: str,
    letter: str = "",
    field: str = "",
    read: Callable[[str], object] = str,
    *,
    own: str = "",
) -> _Option:
    return _Option(name, letter, f"use this tool's own {own or name}", field, read)


# Options that resume, status and the checks at launch need to know.
_HERE = (
    _here("--partition", "p", "partition"),
    _here("--account", "A", "account"),
    _here("--qos", "q", "qos"),
    _here("--time", "t", "time_min", units.parse_limit),
    _here("--cpus-per-task", "c", "cpus", units.parse_count),
    _here("--mem", "", "mem_mb", units.parse_mem),
    _here("--constraint", "C", "constraint"),
    _here("--exclude", "x", "exclude", own="--exclude-nodes"),
    _here("--reservation", "", "reservation"),
    _here("--mail-type", "", "mail_type"),
    _here("--mail-user", "", "mail_user"),
    _here("--container-image"),
    _here("--container-mounts"),
)
_FIELDS = {option.name: option for option in _HERE if option.field}
_NAMES = frozenset(option.name for option in (*_OURS, *_HERE))
_SECRET = re.compile("(TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?|KEY)$", re.IGNORECASE)
_BARE = "HIOQVhksuv"  # letters without a value, which another may follow directly (-HN2)


def parse(text: str) -> str:
    """``text`` if all jobs may use it; the ``UsageError`` names our option instead."""
    return _checked(text, (*_OURS, *_HERE))


def parse_for_download(text: str) -> str:
    """As ``parse``, for the download job only, whose resources may differ."""
    text = _checked(text, _OURS)
    resources_in([text])  # refuses a bad value
    return text


def resources_in(args: Sequence[str]) -> tuple[dict[str, object], tuple[str, ...]]:
    """The fields of ``Resources`` that sbatch's arguments set, and the arguments without them.

    The script requests cores twice, and tasks have to know their time limit; so these cannot be
    left to sbatch. Raises ``UsageError`` for a value that is none.
    """
    fields: dict[str, object] = {}
    others = []
    for text in args:
        words, left = iter(shlex.split(text)), []
        for word in words:
            name, value = _split(word)
            if name is None:
                left.append(word)
            else:
                option = _FIELDS[name]
                fields[option.field] = option.read(next(words, "") if value is None else value)
        if left:
            others.append(text if left == shlex.split(text) else shlex.join(left))
    return fields, tuple(others)


def _split(word: str) -> tuple[str | None, str | None]:
    """The name of an option of ``_FIELDS``, and its value if it is in the same word."""
    long, equals, value = word.partition("=")
    if long in _FIELDS:
        return long, value if equals else None
    letters = {option.letter: option.name for option in _HERE if option.letter}
    name = letters.get(word[1:2]) if word.startswith("-") else None
    return name, word[2:] or None


def arguments_for(own: Resources, others: Resources) -> tuple[str, ...]:
    """sbatch's arguments for the fields of ``own`` that differ from those of ``others``."""
    found = []
    for name, option in _FIELDS.items():
        value = getattr(own, option.field)
        if value not in (None, getattr(others, option.field)):
            text = units.format_time(value) if name == "--time" else str(value)
            found.append(shlex.quote(f"{name}={text}"))
    return tuple(found)


def _checked(text: str, refused: tuple[_Option, ...]) -> str:
    if not text.isprintable():
        raise UsageError(f"{quoted(text)} contains a control character; write it on one line")
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"{quoted(text)} cannot be read ({error})") from error
    if not words or not words[0].startswith("-"):
        raise UsageError(f"{quoted(text)} is not an sbatch option; write it as --option=value")
    for option in _said(words, refused):
        raise UsageError(f"{quoted(text)}: {option.name} cannot be set here; {option.instead}")
    for item in export_of([text]).items:
        name, value, _ = item.partition("=")
        if value and _SECRET.search(name):
            raise UsageError(  # without the text, which contains the secret
                f"--export: the value of {name} would be stored in the batch script; export "
                f"{name} in this shell and use --export={name} without the value"
            )
    return text


def _said(words: list[str], options: tuple[_Option, ...]) -> Iterator[_Option]:
    """Those of ``options`` that are in ``words``, in any notation of sbatch."""
    for word in words:
        long = word.partition("=")[0]
        letter = word[1:].lstrip(_BARE)[:1]
        for option in options:
            if word.startswith("--"):
                # sbatch accepts an unambiguous prefix of an option; --mem is no prefix.
                prefix = long if len(long) > 2 and long not in _NAMES else None
                if long == option.name or (prefix and option.name.startswith(prefix)):
                    yield option
            elif word.startswith("-") and letter and letter == option.letter:
                yield option


# Variables that a download reads: logins, proxies, certificates, passwords.
DOWNLOAD_VARIABLES = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "HF_TOKEN_PATH",
    "HF_HOME",
    *(
        name
        for upper in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")
        for name in (upper, upper.lower())
    ),
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "SSL_CERT_FILE",
    "NETRC",
)
# Those that only a download from an object store reads.
STORE_VARIABLES = (
    "AWS_PROFILE",
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_CONFIG_FILE",
    "AWS_SHARED_CREDENTIALS_FILE",
    "AWS_CA_BUNDLE",
    "AWS_NO_SIGN_REQUEST",
    "GS_NO_SIGN_REQUEST",
    "AZURE_NO_SIGN_REQUEST",
    "GOOGLE_APPLICATION_CREDENTIALS",
    "CLOUDSDK_CONFIG",
    "AZURE_STORAGE_ACCOUNT_KEY",
    "AZURE_STORAGE_KEY",
    "AZURE_STORAGE_SAS_TOKEN",
    "AZURE_CLIENT_ID",
    "AZURE_CLIENT_SECRET",
    "AZURE_TENANT_ID",
    "AZURE_FEDERATED_TOKEN_FILE",
    "AZURE_CONFIG_DIR",
)


@dataclass(frozen=True)
class Export:
    """The variables that jobs get by ``--export`` (https://slurm.schedmd.com/sbatch.html)."""

    value: str = "ALL"

    def __str__(self) -> str:
        """The option without the values of variables, which may be passwords."""
        return f"--export={','.join(map(_without_value, self.value.split(',')))}"

    @property
    def items(self) -> tuple[str, ...]:
        """The variables it lists, as ``NAME`` or ``NAME=value``."""
        listed = self.value.split(",")
        return tuple(item for item in listed if item.upper() not in ("", "ALL", "NIL", "NONE"))

    @property
    def restricts(self) -> bool:
        """Whether jobs get only a part of the environment."""
        return "ALL" not in self.value.upper().split(",")

    def missing(self, wanted: Iterable[str], environ: Mapping[str, str]) -> tuple[str, ...]:
        """Those of ``wanted`` that are set in ``environ`` and that jobs do not get."""
        if not self.restricts:
            return ()
        names = {item.partition("=")[0] for item in self.items}
        return tuple(name for name in wanted if environ.get(name) and name not in names)

    def with_names(self, names: Iterable[str]) -> str:
        """The option with ``names`` added; without values, like ``str``."""
        return f"--export={','.join([*map(_without_value, self.items), *names])}"


def _without_value(item: str) -> str:
    name, equals, _ = item.partition("=")
    return f"{name}=…" if equals else name


def export_of(args: Sequence[str]) -> Export:
    """The ``--export`` of sbatch's arguments; the last one is used, as in sbatch."""
    found = Export()
    for text in args:
        words = iter(shlex.split(text))
        for word in words:
            name, equals, value = word.partition("=")
            if name == "--export":
                found = Export(value if equals else next(words, ""))
    return found
