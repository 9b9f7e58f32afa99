"""Tasks inside containers, and nodes that do not see the environment, on a real Slurm."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from tests.support.cluster.sites import Pages, Site, published

pytestmark = pytest.mark.slurm

# As the pyxis plugin takes them: options of srun, which the real one of the tests does not know.
PYXIS = """
kept=()
for word in "$@"; do
    case $word in --container-*) ;; *) kept+=("$word") ;; esac
done
exec $REAL "${kept[@]}"
"""


# What uv and pip say where the network is missing.
NO_INDEX = re.compile("could not be created: .*(dns|connect|network|timed out)", re.IGNORECASE)


def fake_apptainer(folder: Path) -> Path:
    """A program that runs what it is given apart from the rest, and notes that it did."""
    path = folder / "apptainer"
    note = f'echo "$1 $2" >> {folder}/images.log'
    path.write_text(f'#!/bin/bash\n{note}\nshift 2\nIN_IMAGE=1 exec setsid -w "$@"\n')
    path.chmod(0o755)
    return path


def test_tasks_run_by_the_launcher(plain: Site, pages: Pages, tmp_path: Path) -> None:
    launcher = f"{fake_apptainer(tmp_path)} exec 'my image.sif'"
    plain.launch(tmp_path / "data", *pages.options, "--launcher", launcher)
    assert plain.over()["state"] == "done"
    assert published(tmp_path / "data") == pages.tree
    images = (tmp_path / "images.log").read_text().splitlines()
    assert images == ["exec my image.sif"] * len(plain.run_folder().load_submission(1).tasks)


def test_an_image_goes_to_srun_with_the_folders_of_the_run(
    plain: Site, pages: Pages, tmp_path: Path
) -> None:
    site = plain.wrapping("srun", PYXIS)
    extra = f"{tmp_path}:/extra"
    words = ("--container-image", "docker://python:3.11", "--container-mounts", extra)
    site.launch(tmp_path / "data", *pages.options, *words)
    assert site.over()["state"] == "done"
    assert published(tmp_path / "data") == pages.tree
    for call in site.calls("srun"):
        assert "--container-image=docker://python:3.11" in call
        mounts = next(word for word in call.split() if word.startswith("--container-mounts="))
        targets = [each.split(":")[1] for each in mounts.partition("=")[2].split(",")]
        assert "/extra" in targets
        seen = (tmp_path / "data", site.run_folder().path, Path(sys.prefix), pages.archives)
        for path in seen:
            assert any(path.is_relative_to(target) for target in targets), path


def test_a_node_without_the_environment_is_found_and_the_message_says_what_to_do(
    plain: Site, tmp_path: Path
) -> None:
    gone = "/nowhere/env/bin/python3"
    done = plain.cli.run("doctor", "--dest", tmp_path / "data", "--python", gone, rc=3)
    assert f"✗ environment: the node has no {gone}" in done.out
    assert f"doctor --install-env {tmp_path}/websight-orchestrate-env" in done.out
    launcher = ("--python", gone, "--launcher", "env A=b")
    done = plain.cli.run("doctor", "--dest", tmp_path / "data", *launcher, rc=3)
    assert f"the container has no {gone}" in done.out


def test_an_environment_that_is_installed_runs_the_tasks(
    plain: Site, pages: Pages, tmp_path: Path
) -> None:
    env = tmp_path / "shared" / "env"
    done = plain.cli.run("doctor", "--dest", tmp_path / "data", "--install-env", env, rc=None)
    if NO_INDEX.search(done.out):
        pytest.skip(f"no package index can be reached here: {done.out}")
    assert f"✓ install: created {env}" in done.out
    assert f"✓ environment: Python {sys.version.split()[0]} at {env}/bin/python" in done.out
    again = plain.cli.run("doctor", "--dest", tmp_path / "data", "--install-env", env, rc=None)
    assert "already" in again.out
    plain.launch(tmp_path / "data", *pages.options, "--python", env / "bin" / "python")
    assert plain.over()["state"] == "done"
