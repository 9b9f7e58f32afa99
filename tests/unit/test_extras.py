"""The packages of extras: what is missing is said before a launch, where the tasks run here."""

from __future__ import annotations

import configparser
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from jobs import extras
from jobs.errors import UsageError
from jobs.extras import Extra
from jobs.model import Options, Resources, SourceKind, Verify
from jobs.sources.base import SourceRequest
from orchestrator.engines.registry import SLURM, EngineChoice
from orchestrator.lifecycle import launching
from orchestrator.lifecycle.request import LaunchRequest

EXTRAS = [each for each in vars(extras).values() if isinstance(each, Extra)]
SETUP = Path(__file__).resolve().parents[2] / "setup.cfg"


@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: extra.package)
def test_the_named_extra_has_the_package(extra: Extra) -> None:
    config = configparser.ConfigParser()
    config.read(SETUP)
    assert f"\n{extra.package} " in config["options.extras_require"][extra.name]
    assert extra.is_installed()
    assert not extra._replace(module=f"{extra.module}.none").is_installed()
    assert not extra._replace(module="none.none").is_installed()


@pytest.mark.parametrize(
    ("extra", "options", "name"),
    [
        (extras.DECODE, Options(verify=Verify.DECODE), "a.tar"),
        (extras.BLAKE3, Options(digest="blake3"), "a.tar"),
        (extras.PARQUET, Options(), "a.parquet"),
    ],
)
def test_a_missing_package_is_said_before_the_launch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: Extra, options: Options, name: str
) -> None:
    (tmp_path / name).write_bytes(b"x")
    source = SourceRequest(SourceKind.LOCAL, (str(tmp_path / name),))
    request = LaunchRequest(source, tmp_path / "dest", options=options, engine="local")
    launching.plan(request)
    find_spec = importlib.util.find_spec

    def without(module: str) -> Any:
        return None if module == extra.module else find_spec(module)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    with pytest.raises(UsageError) as caught:
        launching.plan(request)
    assert f"{extra.what} needs the package {extra.package}" in caught.value.message
    assert f"pip install 'websight-orchestrate[{extra.name}]'" in caught.value.message


@pytest.mark.parametrize(
    ("resources", "refused"),
    [
        (Resources(), True),
        (Resources(python="/opt/python"), False),
        (Resources(launcher="apptainer exec image.sif"), False),
        (Resources(container_image="image"), False),
    ],
)
def test_another_python_of_the_tasks_may_have_what_this_one_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resources: Resources, refused: bool
) -> None:
    (tmp_path / "a.tar").write_bytes(b"x")
    source = SourceRequest(SourceKind.LOCAL, (str(tmp_path / "a.tar"),))
    options = Options(verify=Verify.DECODE)
    request = LaunchRequest(source, tmp_path / "dest", options=options, resources=resources)
    monkeypatch.setattr(launching, "choose_engine", lambda wanted: EngineChoice(SLURM))
    monkeypatch.setattr(Extra, "is_installed", lambda self: False)
    if not refused:
        launching.plan(request)
        return
    with pytest.raises(UsageError, match="needs the package Pillow"):
        launching.plan(request)
