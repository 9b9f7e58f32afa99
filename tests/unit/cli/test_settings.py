from __future__ import annotations

import os
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from jobs.errors import UsageError
from orchestrator import api, cli
from orchestrator.cli import settings


@click.group()
@click.option("--profile")
@click.pass_context
def _cli(ctx: click.Context, profile: str | None) -> None:
    ctx.default_map = settings.default_map(profile)


@_cli.command("launch")
@click.option("-p", "--partition", default="any")
@click.option("-t", "--time", "time_min")
@click.option("--setup", multiple=True)
@click.option("--wait/--no-wait", default=False)
@click.option("--keep-archive", is_flag=True)
@click.option("--tasks", type=int, default=256)
@click.option("--show-config", is_flag=True)
@click.pass_context
def _launch(ctx: click.Context, /, show_config: bool, **values: object) -> None:
    click.echo(settings.show_config(settings.config(ctx)) if show_config else repr(values))


@_cli.command("other")
@click.option("--depth", type=int, default=1)
def _other(depth: int) -> None:
    click.echo(depth)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's own settings; the working folder is beside it."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    path = tmp_path / "config" / "websight-orchestrate" / "config.toml"
    path.parent.mkdir(parents=True)
    return path


def _run(*words: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(_cli, words, env=env or {}, catch_exceptions=False)


def _config(*words: str, env: dict[str, str] | None = None) -> dict[str, list[str]]:
    """What `--show-config` says: option to value and origin."""
    lines = _run("launch", *words, "--show-config", env=env).output.splitlines()
    return {line.split()[0]: line.split()[1:] for line in lines if line}


def test_without_a_home_there_are_no_settings(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _run("launch", env={"XDG_CONFIG_HOME": "/dev/null"}).output.startswith("{")
    monkeypatch.delenv("HOME")
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)  # nobody's
    assert _run("launch", env={"XDG_CONFIG_HOME": ""}).output.startswith("{")


def test_a_sites_settings_count_below_the_users(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder, text in (
        (first, 'partition = "cpu"\nprofile = "big"\n[profiles.big]\ntasks = 9\n'),
        (second, 'partition = "old"\ntime = "1:00"\n'),
    ):
        (folder / "websight-orchestrate").mkdir(parents=True)
        (folder / "websight-orchestrate" / "config.toml").write_text(text)
    monkeypatch.setenv("XDG_CONFIG_DIRS", f"{first}:{second}:relative:")
    found = _config()
    site = str(first / "websight-orchestrate" / "config.toml")
    assert found["partition"] == ["cpu", site]
    assert found["time"] == ["1:00", str(second / "websight-orchestrate" / "config.toml")]
    assert found["tasks"] == ["9", site, "[profiles.big]"]
    home.write_text('partition = "mine"\n')
    assert _config()["partition"] == ["mine", str(home)]


def test_later_ones_win(home: Path) -> None:
    home.write_text(
        'partition = "user"\ntime = "1:00"\ntasks = 1\nkeep-archive = true\n'
        '[profiles.big]\ntime = "2:00"\ntasks = 2\n'
    )
    Path("websight.toml").write_text("tasks = 3\n[profiles.big]\nwait = true\n")
    found = _config(env={"WEBSIGHT_PROFILE": "big"})
    assert found["partition"] == ["user", str(home)]
    assert found["time"] == ["2:00", str(home), "[profiles.big]"]
    assert found["tasks"] == ["3", "websight.toml"]
    assert found["wait"] == ["true", "websight.toml", "[profiles.big]"]
    assert found["keep-archive"] == ["true", str(home)]
    assert found["setup"] == ["-", "default"]
    found = _config("--tasks", "5", env={"WEBSIGHT_TASKS": "4", "WEBSIGHT_TIME": "9"})
    assert found["tasks"] == ["5", "command", "line"]
    assert found["time"] == ["9", "environment", "WEBSIGHT_TIME"]


def test_values_arrive_as_the_options_take_them(home: Path) -> None:
    Path("websight.toml").write_text('setup = ["module load a", "b"]\nno-wait = 0\ntasks = 7')
    assert _run("launch").output.strip() == repr(
        {
            "partition": "any",
            "time_min": None,
            "setup": ("module load a", "b"),
            "wait": True,
            "keep_archive": False,
            "tasks": 7,
        }
    )
    out = _run("launch", env={"WEBSIGHT_SETUP": "one line\nanother", "WEBSIGHT_WAIT": "no"}).output
    assert "'setup': ('one line', 'another')" in out and "'wait': False" in out


@pytest.mark.parametrize("line", ["partition = true", 'partition = ["a"]', "keep-archive = 2"])
def test_a_value_of_another_kind_is_refused(home: Path, line: str) -> None:
    Path("websight.toml").write_text(line)
    refused = _run("launch")
    assert refused.exit_code == 2
    assert "Invalid value for" in refused.output


@pytest.mark.parametrize(
    ("line", "env", "origin"),
    [
        ('time = "soon"', {}, "config.toml"),
        ('[profiles.a]\ntime = "soon"\n', {"WEBSIGHT_PROFILE": "a"}, "config.toml [profiles.a]"),
        ('yes = "perhaps"', {}, "config.toml"),
        ('partition = ["a"]', {}, "config.toml"),
        ("", {"WEBSIGHT_TASKS": "all"}, "environment WEBSIGHT_TASKS"),
    ],
)
def test_a_bad_value_is_reported_with_the_place_where_it_is_set(
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    line: str,
    env: dict[str, str],
    origin: str,
) -> None:
    home.write_text(line)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert cli.main(["launch", "--local-path", "x"]) == 2
    assert capsys.readouterr().err.endswith(f"{origin})\n")


def test_a_default_profile_and_one_by_option(home: Path) -> None:
    home.write_text('profile = "a"\n[profiles.a]\ntasks = 1\n[profiles.b]\ntasks = 2\n')
    assert "'tasks': 1" in _run("launch").output
    assert "'tasks': 2" in _run("--profile", "b", "launch").output
    with pytest.raises(UsageError, match="the profiles are: a, b"):
        _run("--profile", "c", "launch")


def test_a_setting_of_another_command_is_fine_and_one_of_none_is_refused(home: Path) -> None:
    Path("websight.toml").write_text("depth = 3\n")
    assert _run("launch").exit_code == 0
    assert _run("other").output == "3\n"
    Path("websight.toml").write_text('partiton = "x"\n')
    with pytest.raises(UsageError, match="did you mean partition"):
        _run("launch")


def test_foreign_variables_are_no_error(home: Path) -> None:
    assert _run("launch", env={"WEBSIGHT_COLOUR": "blue"}).exit_code == 0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("tasks = ", "not valid TOML"),
        ("[odd]\nx = 1\n", "not a known table"),
        ("profiles = 3\n", "must be a table"),
    ],
)
def test_a_broken_file_is_named(home: Path, text: str, words: str) -> None:
    home.write_text(text)
    with pytest.raises(UsageError, match=words) as caught:
        _run("launch")
    assert str(home) in str(caught.value) or "profiles" in str(caught.value)


def test_a_file_that_everybody_can_write_is_refused(home: Path) -> None:
    path = Path("websight.toml")
    path.write_text('setup = ["rm -rf ~"]\n')
    path.chmod(0o666)
    with pytest.raises(UsageError, match="chmod o-w"):
        _run("launch")


def test_no_settings_at_all(home: Path) -> None:
    assert settings.load(env={}) == {}
    assert _config()["partition"] == ["any", "default"]


LAUNCHES = """
partition = "other"
mem = "8G"
time = "1:00:00"
setup = "module load x"
tasks = 3
temp-limit = "1G"
engine = "auto"
revision = "v1"
output = "webdataset"
layout = "websight"
on-collision = "per-shard"
expect-records = 5
"""


@pytest.mark.parametrize(
    ("words", "calls", "kept"),
    [
        (["resume"], "plan_resume", ["tasks", "temp_limit", "amendments"]),
        (["update", "data"], "plan_update", ["revision", "engine", "tasks", "temp_limit"]),
    ],
)
def test_an_existing_run_keeps_its_options_whatever_the_settings_are_now(
    home: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], calls: str, kept: list[str]
) -> None:
    asked: list[dict[str, object]] = []

    def planned(place: object, **options: object) -> None:
        asked.append(options)
        raise click.Abort

    monkeypatch.setattr(api, calls, planned)
    monkeypatch.setattr(api, "find_run", lambda run, log_dir: None)
    home.write_text(LAUNCHES)
    CliRunner().invoke(cli.cli, words)
    CliRunner().invoke(cli.cli, [*words, "--mem", "9G"])
    assert [each["changes"] for each in asked] == [{}, {"mem_mb": 9 << 10}]
    assert [asked[0][name] for name in kept] == [None] * len(kept)


def test_an_option_of_launch_is_no_setting_of_another_commands_option_of_that_name(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home.write_text(LAUNCHES)
    for name, words in (("verify", ["data"]), ("report", [])):
        command = cli.cli.get_command(click.Context(cli.cli), name)
        assert command is not None
        defaults = settings.for_command(settings.load(), command)
        assert not {"engine", "tasks", "output"} & defaults.keys()
        command.make_context(name, list(words), default_map=defaults)
