"""Defaults of a site and of a user: files, profiles, environment variables; with their origins.

Later ones override earlier ones: the site's file, its profile, the user's file, its profile,
``websight.toml`` in the current folder, its profile, ``WEBSIGHT_*`` variables, the command line.
"""

from __future__ import annotations

import os
import shlex
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
    """A value and its origin."""

    value: object
    origin: str


def user_file(env: Mapping[str, str]) -> Path:
    """The path of the user's settings (XDG base directories)."""
    home = os.path.expanduser(env.get("HOME", "~"))  # noqa: PTH111  # no error without a home
    if home == "~":  # a uid without a name, for example in containers
        home = "/nonexistent"
    base = env.get("XDG_CONFIG_HOME") or f"{home}/.config"
    return Path(base) / "websight-orchestrate" / "config.toml"


def site_files(env: Mapping[str, str]) -> list[Path]:
    """Possible paths of an administrator's settings; later ones override earlier ones.

    The folders of XDG_CONFIG_DIRS in reverse order (XDG base directories).
    """
    folders = (env.get("XDG_CONFIG_DIRS") or "/etc/xdg").split(":")
    named = [Path(folder) for folder in reversed(folders) if folder.startswith("/")]
    return [folder / "websight-orchestrate" / "config.toml" for folder in named]


def load(profile: str | None = None, *, env: Mapping[str, str] | None = None) -> dict[str, Setting]:
    """All settings, by the option's name without leading dashes (``part-size``).

    Raises ``UsageError`` for a file that is not TOML or that others can write to, and for an
    unknown profile.
    """
    env = os.environ if env is None else env
    files = [*site_files(env), user_file(env), Path(HERE)]
    read = [(path, _read(path)) for path in files]
    chosen = profile or env.get(f"{PREFIX}PROFILE") or _default_profile(read)
    known = [name for _, table in read for name in _profiles(table)]
    if chosen and chosen not in known:
        near = f"the profiles are: {', '.join(sorted(set(known)))}" if known else "there is none"
        places = ", ".join(map(str, files[:-1]))
        raise UsageError(f"no profile {chosen!r} in {places} or {files[-1]}; {near}")
    found: dict[str, Setting] = {}
    for path, table in read:
        _add_layer(found, _layer(table, str(path)))
        if chosen:
            profiled = _profiles(table).get(chosen, {})
            _add_layer(found, _layer(profiled, f"{path} [{PROFILES}.{chosen}]"))
    for name, text in env.items():
        if name.startswith(PREFIX) and name != f"{PREFIX}PROFILE":
            option = name[len(PREFIX) :].lower().replace("_", "-")
            _add_layer(found, {option: Setting(text, f"environment {name}")})
    return found


def _add_layer(found: dict[str, Setting], layer: Mapping[str, Setting]) -> None:
    """Add a layer to ``found``, its names last: of ``wait`` and ``no-wait`` the later is used."""
    for name, setting in layer.items():
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
    except (FileNotFoundError, NotADirectoryError):  # HOME=/dev/null of a service, for example
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not valid TOML: {error}") from error
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}; fix its permissions, or check HOME, which "
            "decides where your own settings are"
        ) from error


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Refuse a file that others may have written: its ``setup`` lines run as the user."""
    if status.st_uid not in (os.geteuid(), 0) or status.st_mode & stat.S_IWOTH:
        raise UsageError(
            f"{path} is not yours or is writable by others, and its settings could run commands "
            f"as you; remove it, or fix its permissions (chmod o-w {shlex.quote(str(path))})"
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
    """The names of an option in settings: its long forms; none of ``options.typed_only``."""
    if not isinstance(param, click.Option) or getattr(param, "only_typed", False):
        return []
    names = [text[2:] for text in (*param.opts, *param.secondary_opts) if text.startswith("--")]
    return [name for name in names if name not in _NOT_SETTABLE]


def _name_used(settings: Mapping[str, Setting], param: click.Parameter) -> str | None:
    """The name with which an option is set; the last one is used."""
    names = spellings(param)
    return next((name for name in reversed(list(settings)) if name in names), None)


def for_command(settings: Mapping[str, Setting], command: click.Command) -> dict[str, Any]:
    """Click's ``default_map`` for ``command``: values by parameter name."""
    found = {}
    for param in command.params:
        name = _name_used(settings, param)
        if name is not None:
            value = _value(settings[name], param)
            negated = f"--{name}" in param.secondary_opts
            found[param.name or name] = not value if negated else value
    return found


def _value(setting: Setting, param: click.Parameter) -> object:
    """The value for the option: a list if it can be repeated, a string if it parses one."""
    assert isinstance(param, click.Option)
    value = setting.value
    if param.is_flag:
        try:
            return click.BOOL.convert(str(value), param, None)
        except click.BadParameter as error:
            raise _with_origin(error, setting.origin) from error
    if param.multiple:
        items = value.splitlines() if isinstance(value, str) else value
        return [str(item) for item in items] if isinstance(items, list) else [str(items)]
    if isinstance(value, (bool, list)):
        fact = f"{value!r} is not a text or a number"
        raise _with_origin(click.BadParameter(fact, param=param), setting.origin)
    return str(value)


def _with_origin(error: click.BadParameter, origin: str) -> click.BadParameter:
    message = f"{error.message} (set in {origin})"
    return click.BadParameter(message, error.ctx, error.param, error.param_hint)


def with_origin(error: click.BadParameter) -> click.BadParameter:
    """The error on a bad value, with the place where the value is set if it was not typed."""
    ctx, param = error.ctx, error.param
    if ctx is None or param is None:
        return error
    if ctx.get_parameter_source(param.name or "") is not click.core.ParameterSource.DEFAULT_MAP:
        return error
    return _with_origin(error, _origin(ctx, param, _settings_of(ctx)))


def _settings_of(ctx: click.Context) -> Mapping[str, Setting]:
    source = ctx.find_root().default_map
    return source.settings if isinstance(source, DefaultMap) else {}


class DefaultMap(dict[str, Any]):
    """The defaults of all commands for Click, with their origins."""

    def __init__(self, settings: Mapping[str, Setting]) -> None:
        super().__init__()
        self.settings = settings

    def get(self, name: str, default: Any = None) -> Any:
        """The defaults of the command ``name``; ``UsageError`` for an unknown setting."""
        ctx = click.get_current_context()
        group = ctx.command
        command = group.get_command(ctx, name) if isinstance(group, click.Group) else None
        if command is None or not self.settings:
            return default
        assert isinstance(group, click.Group)
        self._check_names(ctx, group, command)
        return for_command(self.settings, command)

    def _check_names(self, ctx: click.Context, group: click.Group, command: click.Command) -> None:
        """Refuse settings that no command has, which are probably typing errors."""
        known = {name for param in command.params for name in spellings(param)}
        unknown = {
            name: setting
            for name, setting in self.settings.items()
            if name not in known and not setting.origin.startswith("environment")
        }
        if not unknown:
            return
        for other in group.list_commands(ctx):
            found = group.get_command(ctx, other)
            known |= {name for p in (found.params if found else ()) for name in spellings(p)}
        for name, setting in unknown.items():
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else ""
                raise UsageError(f"{setting.origin}: there is no option {name!r}{hint}")


def default_map(profile: str | None = None) -> DefaultMap:
    """The settings of the current folder, the user and the environment, for ``ctx.default_map``."""
    return DefaultMap(load(profile))


def config(ctx: click.Context) -> dict[str, Setting]:
    """All options of a command by name: value as text, and origin; without secrets."""
    from jobs.transfer.target import redact

    settings, found = _settings_of(ctx), {}
    for param in ctx.command.params:
        names = spellings(param)
        if names:
            value = _shown(ctx.params.get(param.name or ""))
            if param.name == "urls":
                value = ", ".join(map(redact, ctx.params["urls"])) or value
            found[names[0]] = Setting(value, _origin(ctx, param, settings))
    return found


def show_config(found: Mapping[str, Setting]) -> str:
    """``config`` as text, a line for each option."""
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
            name = _name_used(settings, param)
            return settings[name].origin if name is not None else "settings"
        case _:
            return "default"
