"""The commands that people look at, on a run of this machine: typed as a user types them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from examples import samples
from jobs.storage import presence
from tests.support.cli import Cli
from tests.support.faults.forkshop import Shop


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, shop: Shop) -> Cli:
    """A shell in whose `logs/` there is a run that is done, and one that failed."""
    base = tmp_path_factory.mktemp("output")
    dataset = samples.make_dataset(base / "original", records=60)
    samples.pack_shards(dataset, base / "shards", count=3)
    shell = Cli(base, forked=shop.done)
    words = ("--engine", "local", "--tasks", "3", "-y")
    shell.run("launch", "--local-path", "shards", "--dest", "pages", *words)
    shutil.copytree(base / "shards", base / "broken")
    first = min((base / "broken").iterdir())
    first.write_bytes(first.read_bytes()[:5000])
    shell.run("launch", "--local-path", "broken", "--dest", "other", *words, rc=1)
    return shell


def _ids(shell: Cli) -> tuple[str, str]:
    dests = {
        path.name: json.loads((path / "plan.json").read_text())["dest"] for path in shell.runs()
    }
    good, bad = sorted(dests, key=lambda run_id: dests[run_id].endswith("other"))
    return good, bad


def test_runs_lists_both_the_newest_first(done: Cli) -> None:
    reported = done.run("runs", "--json").json()["runs"]
    good, bad = _ids(done)
    assert [run["run_id"] for run in reported] == [bad, good]
    states = {run["run_id"]: run["state"] for run in reported}
    assert states[good] == "done" and states[bad] in ("incomplete", "failed")
    assert done.run("runs", "-n", "1").out.startswith(bad)


def test_help_shows_the_options_of_launch_under_titles_and_each_once(here: Cli) -> None:
    out = here.run("launch", "--help").out
    titles = [line for line in out.splitlines() if line.endswith(":") and line[0].isalpha()]
    words = ("Source", "Dataset", "Verification", "Download and run", "Slurm", "Options")
    assert [title.partition(" (")[0].rstrip(":") for title in titles] == list(words)
    for option in ("--hf-repo", "--dest", "--verify", "--then", "--partition", "--dry-run"):
        assert len(re.findall(rf"^  (?:-\w, )?{option}\b", out, re.M)) == 1, option


def test_runs_without_any_says_so(here: Cli) -> None:
    assert "there is no run" in here.run("runs").err


@pytest.mark.parametrize("mode", [0o700, 0o1777])
def test_a_folder_that_is_no_runs_is_called_that_and_left_as_it_is(
    tmp_path: Path, here: Cli, mode: int
) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other").chmod(mode)
    reported = here.run("status", "./other", rc=1).err
    assert "is not a run folder" in reported and "chmod" not in reported


def test_logs_show_the_failed_task_and_by_name(done: Cli) -> None:
    good, bad = _ids(done)
    failed = done.run("logs", bad, "--failed").out
    assert "· failed ·" in failed and "shard-0000.tar.gz" in failed
    assert "finalize task 0 · done" in done.run("logs", good).out
    assert "extract task 1 · done" in done.run("logs", good, "extract-1").out
    assert "download task 0" in done.run("logs", good, "shard-0001.tar.gz").out
    assert "no task has failed" in done.run("logs", good, "--failed").err
    assert "has no task nonsense" in done.run("logs", good, "nonsense", rc=2).err
    assert done.run("logs", good, "-n", "9" * 20).out == done.run("logs", good).out


@pytest.mark.parametrize("command", ["status", "resume", "cancel", "logs", "report"])
def test_the_name_of_a_run_that_is_empty_is_not_the_newest_run(done: Cli, command: str) -> None:
    assert "is a variable not set?" in done.run(command, "", rc=2).err


def test_logs_of_a_task_alone_are_the_newest_runs(done: Cli) -> None:
    assert "extract task 2" in done.run("logs", "2").out
    assert "download task 0" in done.run("logs", "download").out


def test_logs_of_a_single_argument_that_is_no_run_are_those_of_its_task(done: Cli) -> None:
    assert "download task 0" in done.run("logs", "shard-0001.tar.gz").out
    job = done.run("status", "--json", rc=None).json()["jobs"][-1]
    assert "finalize task 0" in done.run("logs", job).out
    assert "there is no run 12345678 in" in done.run("logs", "12345678", rc=1).err


def test_a_task_in_two_words_is_not_taken_for_a_run(done: Cli) -> None:
    assert "`logs extract-0`" in done.run("logs", "extract", "2", rc=2).err


def test_following_a_task_that_has_ended_ends(done: Cli) -> None:
    good, _ = _ids(done)
    assert "submitit" in done.run("logs", good, "extract-0", "--follow").out


def test_the_report_is_one_file_with_the_receipt(done: Cli) -> None:
    good, bad = _ids(done)
    path = Path(done.run("report", good).out.strip())
    assert path == done.cwd / "logs" / good / "report.html"
    assert path.stat().st_mode & 0o077 == 0
    html = path.read_text(encoding="utf-8")
    assert "RECEIPT.json" in html and "Dataset verification passed!" in html
    done.run("report", bad, "-o", "mine.html")
    assert "Problems" in (done.cwd / "mine.html").read_text(encoding="utf-8")
    refused = done.run("report", bad, "-o", "/sys/mine.html", rc=1).err  # root may not write there
    assert ", then try again" in refused


def test_status_watches_to_the_end_and_knows_its_exit_code(done: Cli) -> None:
    good, bad = _ids(done)
    assert done.run("status", good, "--watch").out.endswith("✓ Dataset verification passed!\n")
    text = done.run("status", bad, "--failed", rc=1).out
    assert "problem" in text and "extract tasks" not in text


def test_a_watched_status_is_json_lines_for_a_program(done: Cli) -> None:
    good, bad = _ids(done)
    for run, state, rc in ((good, "done", 0), (bad, done.status(bad)["state"], 1)):
        lines = done.run("status", run, "--watch", "--json", rc=rc).out.splitlines()
        assert [json.loads(line)["state"] for line in lines] == [state]


@pytest.mark.parametrize(
    ("words", "rc", "kind"),
    [
        pytest.param(("status", "nope"), 1, "run_folder", id="an error of ours"),
        pytest.param(("status", "--bogus"), 2, "usage", id="an option that there is not"),
        pytest.param(("stat",), 2, "usage", id="a command that there is not"),
        pytest.param(("doctor", "--wait-s", "0"), 2, "usage", id="a value out of range"),
        pytest.param(("launch",), 2, "usage", id="nothing to launch"),
        pytest.param(("launch", "--parsable"), 2, "usage", id="two forms at once"),
    ],
)
def test_an_error_is_json_where_json_was_asked_for(
    done: Cli, words: tuple[str, ...], rc: int, kind: str
) -> None:
    reported = done.run(*words, "--json", rc=rc)
    error = reported.json()["error"]
    assert (error["kind"], error["exit_code"]) == (kind, rc)
    assert error["message"] in reported.err and "Traceback" not in reported.err
    assert done.run(*words, rc=rc).out == ""


def test_settings_that_ask_for_json_get_errors_as_json(done: Cli) -> None:
    assert "error" in done.having(WEBSIGHT_JSON="1").run("status", "nope", rc=1).json()


def test_a_dry_resume_says_as_json_what_it_would_do(done: Cli) -> None:
    good, bad = _ids(done)
    reported = done.run("resume", good, "--dry-run", "--json").json()
    assert reported["nothing_to_do"] is True and reported["parts"] == []
    reported = done.run("resume", bad, "--dry-run", "--json").json()
    assert reported["nothing_to_do"] is False and reported["parts"] == ["0000-shard-0000.p0000"]
    assert reported["problems"] == []


def test_a_dry_resume_names_what_would_prevent_it_and_ends_with_3(done: Cli) -> None:
    _, bad = _ids(done)
    claim = done.cwd / "other" / ".incoming" / "claim.json"
    held = claim.read_text()
    try:
        claim.write_text("{")
        assert "claim.json is invalid" in done.run("resume", bad, "--dry-run", rc=3).err
    finally:
        claim.write_text(held)


def test_the_configuration_is_json_where_json_was_asked_for(done: Cli) -> None:
    reported = done.run("launch", "--tasks", "7", "--show-config", "--json").json()
    assert reported["options"]["tasks"] == {"value": "7", "origin": "command line"}


def test_colours_and_letters_follow_the_environment(done: Cli) -> None:
    good, _ = _ids(done)
    assert "\x1b[" not in done.run("status", good).out
    assert "\x1b[" in done.having(FORCE_COLOR="1").run("status", good).out
    assert done.having(PYTHONIOENCODING="ascii", PYTHONUTF8="0").run("status", good).out.isascii()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1:strict", "cp437:strict"])
def test_what_a_locale_lacks_is_escaped_and_json_is_utf_8(done: Cli, encoding: str) -> None:
    shell = done.having(PYTHONIOENCODING=encoding, PYTHONUTF8="0")
    assert "Usage: websight-orchestrate" in shell.run("launch", "--help").out
    good, _ = _ids(done)
    reported = shell.run("status", good, "--json")
    assert "✓ Dataset verification passed!" in reported.out
    assert reported.json() == done.run("status", good, "--json").json()


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_made_for_each_shell(here: Cli, shell: str) -> None:
    text = here.run("completion", shell).out
    assert "_WEBSIGHT_ORCHESTRATE_COMPLETE" in text


def _completed(done: Cli, words: str) -> list[str]:
    """What a shell would offer for the last word of `words`."""
    env = {
        **os.environ,
        "_WEBSIGHT_ORCHESTRATE_COMPLETE": "bash_complete",
        "COMP_WORDS": f"websight-orchestrate {words}",
        "COMP_CWORD": str(len(words.split(" "))),
    }
    program = "import sys; from orchestrator.cli import main; sys.exit(main([]))"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=done.cwd, env=env, capture_output=True, text=True,
        check=False, timeout=60,
    )  # fmt: skip
    return [line.partition(",")[2] for line in found.stdout.splitlines()]


def test_commands_options_and_run_ids_are_completed(done: Cli) -> None:
    assert "launch" in _completed(done, "la")
    assert "--watch" in _completed(done, "status --w")
    assert sorted(_completed(done, "resume 2")) == sorted(_ids(done))


def test_settings_of_the_folder_are_used_and_shown(done: Cli, tmp_path: Path, here: Cli) -> None:
    (tmp_path / "websight.toml").write_text('dest = "kept"\n[profiles.big]\ntasks = 7\n')
    shell = here.having(WEBSIGHT_PART_SIZE="64M")
    out = shell.run("--profile", "big", "launch", "--show-config", "--engine", "local").out
    found = {line.split()[0]: line.split(maxsplit=2)[1:] for line in out.splitlines()}
    assert found["dest"] == ["kept", "websight.toml"]
    assert found["tasks"] == ["7", "websight.toml [profiles.big]"]
    assert found["part-size"][1] == "environment WEBSIGHT_PART_SIZE"
    assert found["engine"] == ["local", "command line"]
    (tmp_path / "websight.toml").write_text("dst = 1\n")
    assert "did you mean dest?" in shell.run("launch", rc=2).err


def test_status_json_is_one_object(done: Cli) -> None:
    good, _ = _ids(done)
    reported = json.loads(done.run("status", good, "--json").out)
    assert reported["state"] == "done" and reported["records"] == 60


def test_a_run_that_may_not_be_looked_into_hides_no_other(
    done: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from orchestrator.inspection import run_list

    log_dir, hidden = done.cwd / "logs", _ids(done)[1]
    real = presence.is_file

    def is_file(path: Path) -> bool:
        if path.parent.name == hidden:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(presence, "is_file", is_file)
    assert run_list.run_ids(log_dir) == [_ids(done)[0]]


SECRET = "hf_secret"


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (["--header", f"Authorization: Bearer {SECRET}"], "takes NAME=VARIABLE"),
        (["--header", f"Authorization: Bearer {SECRET}=="], "takes NAME=VARIABLE"),
        (["--url", f"user:{SECRET}@host/a.tar"], "not an http or https URL"),
        (["--url", f"s3://key:{SECRET}@bucket/a.tar"], "s3://BUCKET/KEY"),
        (["--url", "s3://b/a.tar", "--header", "X=Y"], "with --url of an object store"),
        (["--dest", ""], "the path is empty"),
        (["--dest", "~nobody-of-that-name/x"], "home folder is unknown"),
        (["--dest", b"bad\xff"], "is not UTF-8"),
        (["--stall", "nan"], "not a finite number"),
        (["--max-expansion", "0"], "not in the range"),
        (["--max-expansion", "inf"], "not in the range"),
        (["--stall", "1e308"], "not in the range"),
        (["--connections", "9" * 20], "not in the range"),
        (["--strip-components", "9" * 20], "a number from 0 to 999"),
        (["--url-list", "utf16"], "cannot be read as UTF-8"),
        (["--url-list", f"https://host/list?Signature={SECRET}"], "takes a path"),
        (["--local-path", f"https://host/a.tar?Signature={SECRET}"], "takes a path"),
        (["--url-list", "gone"], "cannot be read: No such file or directory; check the path"),
        (["--local-path", "pipe"], "neither a file nor a folder"),
        (["--then", "x" * 300], "this batch script does not exist"),
        (["--then", "script", "--engine", "local"], "omit it or --engine local"),
        (["--verify", "decode", "--skip-verify"], "contradict each other"),
        (["--layout", "files", "--expect-records", "5"], "publishes no records"),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else "",
)
def test_what_makes_no_sense_is_refused_with_the_reason_and_no_secret(
    tmp_path: Path, here: Cli, words: list[str | bytes], reported: str
) -> None:
    (tmp_path / "utf16").write_text("http://host/a.tar\n", encoding="utf-16")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "script").touch()
    texts = [os.fsdecode(word) for word in words]
    source = ["--local-path", "."] if "--dest" in texts else ["--url", "http://host.invalid/a.tar"]
    if texts[0] in ("--url", "--url-list", "--local-path"):
        source = []
    done = here.run("launch", "--dry-run", *source, *texts, rc=None)
    assert done.rc == 2, done
    assert reported in " ".join(done.err.split())
    assert "Traceback" not in done.err
    assert SECRET not in done.out + done.err


def test_typed_options_override_settings_that_they_exclude(done: Cli) -> None:
    words = ("launch", "--local-path", "shards", "--dest", "new", "--engine", "local", "--dry-run")
    shell = done.having(WEBSIGHT_SKIP_VERIFY="1", WEBSIGHT_THEN="train.slurm")
    assert "Verify    none" in shell.run(*words).out
    assert "Verify    structure" in shell.run(*words, "--verify", "structure").out


def test_show_config_shows_no_secret_of_an_address(here: Cli) -> None:
    url = f"https://user:{SECRET}@host/a.tar?sig={SECRET}"
    shown = here.run("launch", "--show-config", "--url", url).out
    assert "https://host/a.tar" in shown
    assert SECRET not in shown


def test_a_report_replaces_no_folder_and_no_device(done: Cli) -> None:
    assert "is not a file" in done.run("report", _ids(done)[0], "-o", ".", rc=2).err
    assert "is not a file" in done.run("report", _ids(done)[0], "-o", "/dev/null", rc=2).err
    assert "absent is not a folder" in done.run("report", _ids(done)[0], "-o", "absent/r", rc=2).err
    (done.cwd / "link.html").symlink_to("real.html")
    done.run("report", _ids(done)[0], "-o", "link.html")
    assert (done.cwd / "link.html").is_symlink()
    assert "<html" in (done.cwd / "real.html").read_text()


def test_closed_streams_are_no_error(done: Cli) -> None:
    command = [sys.executable, "-m", "orchestrator", "runs"]
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        shell = ["sh", "-c", f'exec "$@" {closed}', "sh", *command]
        ended = subprocess.run(shell, cwd=done.cwd, capture_output=True, text=True)
        assert ended.returncode == 0, ended
        assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("words", "rc"),
    [
        ("doctor", 0),
        ("logs", 0),
        ("launch --help", 0),
        ("launch --local-path shards --dest pages --dry-run", 3),
        ("status", 1),
        ("verify pages --json", 0),
        ("verify absent", 5),
    ],
)
def test_a_reader_that_ends_is_no_error(done: Cli, words: str, rc: int) -> None:
    process = done.start(*words.split())
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # as `| head -c1` does
    assert process.wait(timeout=60) == rc
    assert "Traceback" not in process.stderr.read()
    process.stderr.close()


@pytest.mark.parametrize(
    "where",
    [("click",), ("orchestrator.cli.runs", "orchestrator.cli.exit_codes")],
    ids=["once", "again while the first is reported"],
)
def test_ctrl_c_while_modules_are_imported_is_reported_in_one_line(
    cli: Cli, where: tuple[str, ...]
) -> None:
    # It comes when one of these modules is looked for.
    (cli.cwd / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name in {where!r}:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n"
    )
    ended = cli.having(PYTHONPATH=str(cli.cwd)).run("runs", rc=130)
    assert (ended.out, ended.err.strip()) == ("", "interrupted")


def test_slurm_options_without_effect_are_named_if_they_were_typed(done: Cli) -> None:
    words = ("--local-path", "shards", "--dest", "new", "--dry-run")
    local = ("launch", "--engine", "local", *words)
    said = done.run(*local, "-p", "gpu", "--setup", "module load x").out
    assert "ignoring the Slurm options --partition, --setup" in said
    settings = done.having(WEBSIGHT_PARTITION="gpu")
    assert "for Slurm" not in settings.run(*local).out
    good, bad = _ids(done)
    assert (
        "ignoring the Slurm options --mem" in done.run("resume", bad, "--mem=9G", "--dry-run").err
    )
    assert "ignoring the Slurm options --account" in done.run("verify", good, "-A", "me").err


@pytest.mark.parametrize(("words", "code"), [("bogus --json", 2), ("status nosuch --json", 1)])
@pytest.mark.parametrize("out", [">/dev/full", ">&-"])
def test_an_error_that_nobody_can_read_ends_with_its_code_all_the_same(
    tmp_path: Path, words: str, code: int, out: str
) -> None:
    line = f"{sys.executable} -m orchestrator {words} {out}"
    done = subprocess.run(
        line,
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("line", "reported"),
    [
        ("{} launch -h >/dev/full", "writing to standard output: no space left"),
        ("mkdir d && cd d && rmdir ../d && {} status", "the current folder: No such file"),
    ],
)
def test_an_error_that_names_no_file_is_reported_in_plain_words(
    tmp_path: Path, line: str, reported: str
) -> None:
    done = subprocess.run(
        line.format(f"{sys.executable} -m orchestrator"),
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {reported}"), done.stderr
    assert "resume" not in done.stderr


def test_a_launch_without_standard_input_asks_nothing(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "a.txt").write_text("a")
    words = "launch --local-path pages --layout files --dest data --engine local"
    line = f"{sys.executable} -m orchestrator {words} <&-"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(line, shell=True, cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "data" / "a.txt").read_text() == "a"
