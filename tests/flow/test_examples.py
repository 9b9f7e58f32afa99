"""The files in `examples/` and the examples of the guide run as they are."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from examples import samples
from tests.support import options_table
from tests.support.cli import Cli

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"
GUIDE = options_table.GUIDE.read_text(encoding="utf-8")


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    original = samples.make_dataset(tmp_path / "original", records=20)
    samples.pack_shards(original, tmp_path / "shards", count=2)
    return tmp_path / "shards"


def test_the_example_of_the_api_brings_a_dataset_in(tmp_path: Path, shards: Path) -> None:
    shell = Cli(tmp_path).program(str(EXAMPLES / "api.py"))
    done = shell.run(shards, tmp_path / "pages")
    first, tasks, status = done.out.splitlines()
    assert first == f"2 shards to {tmp_path / 'pages'}"
    assert "s of CPU time in " in tasks
    assert status == "done"
    refused = shell.run(tmp_path / "nothing", tmp_path / "other", rc=1)
    assert "Traceback" not in refused.err


def test_the_batch_script_and_the_training_loop_read_a_published_dataset(
    tmp_path: Path, shards: Path
) -> None:
    Cli(tmp_path).run(
        "launch", "--local-path", shards, "--dest", "pages", "--engine", "local", "--yes"
    )
    done = subprocess.run(
        ["bash", EXAMPLES / "train.slurm"],
        cwd=tmp_path,
        env={
            **os.environ,
            "DATA": str(tmp_path / "pages"),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "first record: " in done.stdout
    trained = Cli(tmp_path).program(str(EXAMPLES / "train.py")).run("pages")
    size = sum(path.stat().st_size for path in (tmp_path / "original" / "images").iterdir())
    assert trained.out.splitlines() == [
        f"epoch {epoch}: 20 pages, {size} bytes of images" for epoch in (1, 2)
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        pytest.param([], {"partition": "cpu", "account": "myproject"}, id="default profile"),
        pytest.param(["--profile", "offline"], {"download-on": "login"}, id="profile by its name"),
    ],
)
def test_the_settings_are_understood(
    words: list[str], expected: dict[str, str], tmp_path: Path
) -> None:
    shutil.copy(EXAMPLES / "websight.toml", tmp_path)
    shell = Cli(tmp_path).having(HOME=str(tmp_path))
    options = shell.run(*words, "launch", "--show-config", "--json").json()["options"]
    assert {name: options[name]["value"] for name in expected} == expected


def _examples_of_the_guide() -> list[tuple[str, str]]:
    return re.findall(r"<!-- example -->\n```(\w*)\n(.*?)^```", GUIDE, re.M | re.S)


def test_the_guide_has_examples() -> None:
    assert {kind for kind, _ in _examples_of_the_guide()} == {"", "python"}


@pytest.mark.parametrize(("kind", "text"), _examples_of_the_guide(), ids=["shell", "python"])
def test_the_guides_examples_run(kind: str, text: str, tmp_path: Path) -> None:
    samples.pack_shards(
        samples.make_dataset(tmp_path / "original", records=40), tmp_path / "shards"
    )
    shell = Cli(tmp_path)
    if kind == "python":
        done = subprocess.run(
            [sys.executable, "-c", text],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == ["4 shards", "done"]
    else:
        for line in text.splitlines():
            shell.run(*shlex.split(line)[1:])
    training = re.search(r"^```python\n(.*?)^```", GUIDE, re.M | re.S)
    assert training
    subprocess.run([sys.executable, "-c", training[1]], cwd=tmp_path, check=True, timeout=60)
