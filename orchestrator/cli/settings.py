"""Defaults of a site and of a user: files, profiles for clusters, environment; and who said what.

Later ones win: the site's file, its profile, the user's file, its profile, ``websight.toml`` here,
its profile, ``WEBSIGHT_*`` variables, the command line.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import click

from jobs.errors import UsageError

PREFIX = "WEBSIGHT_"
HERE = "websight.toml"
PROFILES = "profiles"
_NOT_SETTABLE = frozenset({"help", "version", "profile", "show-config"})


@dataclass(frozen=True)
class Setting:
    """A value and who said it."""

    value: object
    origin: str


def user_file(env: Mapping[str, str]) -> Path:
    """Where the user's own settings are (XDG base directories)."""
    base = env.get("XDG_CONFIG_HOME") or str(Path(env.get("HOME", "~")).expanduser() / ".config")
    return Path(base) / "websight-orchestrate" / "config.toml"


def site_files(env: Mapping[str, str]) -> list[Path]:
    """Where an administrator's settings may be, those that count least first.

    The folders of XDG_CONFIG_DIRS, of which earlier ones count more (XDG base directories).
    """
    folders = (env.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    named = [Path(folder) for folder in reversed(folders) if folder.startswith("/")]
    return [folder / "websight-orchestrate" / "config.toml" for folder in named]


def load(
    profile: str | None = None,
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> dict[str, Setting]:
    """Every setting there is, by the option's name without dashes before it (``part-size``).

    Raises ``UsageError`` for a file that is no TOML, that others can write, or that lacks the
    profile asked for.
    """
    env = os.environ if env is None else env
    files = [*site_files(env), user_file(env), (cwd or Path()) / HERE]
    read = [(path, _read(path)) for path in files]
    chosen = profile or env.get(f"{PREFIX}PROFILE") or _default_profile(read)
    known = [name for _, table in read for name in _profiles(table)]
    if chosen and chosen not in known:
        near = f"there are: {', '.join(sorted(set(known)))}" if known else "there are none"
        places = ", ".join(map(str, files[:-1]))
        raise UsageError(f"no profile {chosen!r} in {places} or {files[-1]}; {near}")
    found: dict[str, Setting] = {}
    for path, table in read:
        _lay(found, _layer(table, str(path)))
        if chosen:
            profiled = _profiles(table).get(chosen, {})
            _lay(found, _layer(profiled, f"{path} [{PROFILES}.{chosen}]"))
    for name, text in env.items():
        if name.startswith(PREFIX) and name != f"{PREFIX}PROFILE":
            option = name[len(PREFIX) :].lower().replace("_", "-")
            _lay(found, {option: Setting(text, f"environment {name}")})
    return found


def _lay(found: dict[str, Setting], over: Mapping[str, Setting]) -> None:
    """Put a layer over ``found``, its names last: of ``wait`` and ``no-wait`` the later counts."""
    for name, setting in over.items():
        found.pop(name, None)
        found[name] = setting


def _read(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    try:
        with path.open("rb") as file:
            _check_owner(path, os.fstat(file.fileno()))
            return tomllib.load(file)
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Refuse what others wrote: ``setup`` lines run as the user."""
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & stat.S_IWOTH:
        raise UsageError(
            f"{path} is not yours or is writable by others, and its settings could run commands "
            f"as you; remove it, or fix its permissions (chmod o-w {path})"
        )


def _profiles(table: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    profiles = table.get(PROFILES, {})
    if not isinstance(profiles, dict) or not all(isinstance(p, dict) for p in profiles.values()):
        raise UsageError(f"[{PROFILES}.NAME] must be a table of options")
    return profiles


def _default_profile(read: list[tuple[Path, dict[str, Any]]]) -> str | None:
    names = [str(table["profile"]) for _, table in read if "profile" in table]
    return names[-1] if names else None


def _layer(table: Mapping[str, Any], origin: str) -> dict[str, Setting]:
    found = {}
    for name, value in table.items():
        if name in (PROFILES, "profile"):
            continue
        if isinstance(value, dict):
            raise UsageError(
                f"{origin}: [{name}] is not a known table; profiles are [profiles.NAME]"
            )
        found[name.replace("_", "-")] = Setting(value, origin)
    return found


def spellings(param: click.Parameter) -> list[str]:
    """The names under which settings may give an option: its long forms."""
    if not isinstance(param, click.Option):
        return []
    names = [text[2:] for text in (*param.opts, *param.secondary_opts) if text.startswith("--")]
    return [name for name in names if name not in _NOT_SETTABLE]


def _given(settings: Mapping[str, Setting], param: click.Parameter) -> str | None:
    """Under which of its names an option is set; the last one counts."""
    names = spellings(param)
    return next((name for name in reversed(list(settings)) if name in names), None)


def for_command(settings: Mapping[str, Setting], command: click.Command) -> dict[str, Any]:
    """What Click calls a ``default_map`` of ``command``: parameter name to value."""
    found = {}
    for param in command.params:
        name = _given(settings, param)
        if name is not None:
            value = _value(settings[name].value, param)
            negated = f"--{name}" in param.secondary_opts
            found[param.name or name] = not value if negated else value
    return found


def _value(value: object, param: click.Parameter) -> object:
    """``value`` as the option takes it: a list where it repeats, a text where it parses one."""
    assert isinstance(param, click.Option)
    if param.is_flag:
        return click.BOOL.convert(value, param, None)
    if param.multiple:
        items = value.splitlines() if isinstance(value, str) else value
        return [str(item) for item in items] if isinstance(items, list) else [str(items)]
    return value if isinstance(value, str) else str(value)


class DefaultMap(dict[str, Any]):
    """Gives each command its defaults when Click asks for them, and knows where they came from."""

    def __init__(self, settings: Mapping[str, Setting]) -> None:
        super().__init__()
        self.settings = settings

    def get(self, name: str, default: Any = None) -> Any:
        """The defaults of the command ``name``; ``UsageError`` for a setting of no command."""
        ctx = click.get_current_context()
        group = ctx.command
        command = group.get_command(ctx, name) if isinstance(group, click.Group) else None
        if command is None or not self.settings:
            return default
        assert isinstance(group, click.Group)
        self._check_names(ctx, group, command)
        return for_command(self.settings, command)

    def _check_names(self, ctx: click.Context, group: click.Group, command: click.Command) -> None:
        """Refuse what no command knows; a file's typing error must not pass in silence."""
        known = {name for param in command.params for name in spellings(param)}
        odd = {
            name: setting
            for name, setting in self.settings.items()
            if name not in known and not setting.origin.startswith("environment")
        }
        if not odd:
            return
        for other in group.list_commands(ctx):
            found = group.get_command(ctx, other)
            known |= {name for p in (found.params if found else ()) for name in spellings(p)}
        for name, setting in odd.items():
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UsageError(f"{setting.origin}: there is no option {name!r}{hint}")


def default_map(profile: str | None = None) -> DefaultMap:
    """The settings of this process's folder, user and environment, for ``ctx.default_map``."""
    return DefaultMap(load(profile))


def config(ctx: click.Context) -> dict[str, Setting]:
    """Every option of a command by its name: its value as text, and who said it; no secrets."""
    from jobs.transfer.target import redact

    source = ctx.find_root().default_map
    settings: Mapping[str, Setting] = source.settings if isinstance(source, DefaultMap) else {}
    found = {}
    for param in ctx.command.params:
        names = spellings(param)
        if names:
            value = _shown(ctx.params.get(param.name or ""))
            if param.name == "urls":
                value = ", ".join(map(redact, ctx.params["urls"])) or value
            found[names[0]] = Setting(value, _origin(ctx, param, settings))
    return found


def show_config(found: Mapping[str, Setting]) -> str:
    """``config``, a line each."""
    wide = max(map(len, found), default=0)
    long = min(36, max((len(str(each.value)) for each in found.values()), default=0))
    return "".join(
        f"{name:<{wide}}  {each.value!s:<{long}}  {each.origin}".rstrip() + "\n"
        for name, each in found.items()
    )


def _shown(value: object) -> str:
    if value is None or value == ():
        return "-"
    if isinstance(value, tuple | list):
        return ", ".join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(getattr(value, "value", value))


def _origin(ctx: click.Context, param: click.Parameter, settings: Mapping[str, Setting]) -> str:
    match ctx.get_parameter_source(param.name or ""):
        case click.core.ParameterSource.COMMANDLINE:
            return "command line"
        case click.core.ParameterSource.DEFAULT_MAP:
            name = _given(settings, param)
            return settings[name].origin if name is not None else "settings"
        case _:
            return "default"
