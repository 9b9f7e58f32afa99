"""Archives whose files share folders now, although they may be different sets."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.builders.complete_run import complete_run
from tests.support.builders.contents import png, zipped

FILES = ("--layout", "files")
TOPS = "the top folders of archives were removed"
FLAT = "are in no folder there"


def source(root: Path, archives: Mapping[str, Mapping[str, bytes]], *images: str) -> Path:
    """A folder with these zips, and with a list of these images if there are any."""
    folder = root / "source"
    folder.mkdir()
    for name, files in archives.items():
        (folder / name).write_bytes(zipped(files))
    if images:
        (folder / "mix.json").write_text(json.dumps([{"image": path} for path in images]))
    return folder


def pictures(*paths: str) -> dict[str, bytes]:
    return {path: png(sum(path.encode())) for path in paths}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "second", "said"), [("gqa", "ocr", True), ("part-1", "part-2", False)]
)
def test_it_is_said_that_different_top_folders_were_removed_and_the_option_keeps_them(
    tmp_path: Path, first: str, second: str, said: bool
) -> None:
    images = (f"{first}/images/1.png", f"{second}/images/2.png")
    place = source(tmp_path, {f"{p[:-13]}.zip": pictures(p) for p in images}, *images)
    brought = complete_run(tmp_path / "a", place)
    assert brought.problems == []
    assert set(brought.files) == {"images/1.png", "images/2.png", "mix.json"}
    assert (TOPS in brought.text) is said
    kept = complete_run(tmp_path / "b", place, "--strip-components", "0")
    assert kept.problems == []
    assert set(kept.files) == {*images, "mix.json"}
    assert TOPS not in kept.text


@pytest.mark.slow
@pytest.mark.parametrize("second", [1, 2])
def test_a_collision_of_files_of_different_top_folders_names_the_option_that_keeps_them(
    tmp_path: Path, second: int
) -> None:
    images = ("gqa/images/1.png", f"ocr/images/{second}.png")
    archives = {f"{p[:3]}.zip": pictures(p, f"{p[:3]}/card.png") for p in images}
    place = source(tmp_path, archives, *images)
    brought = complete_run(tmp_path / "a", place)
    [problem] = brought.problems
    assert "different bytes in two archives" in problem
    assert problem.count("launch with --strip-components 0") == 1
    kept = complete_run(tmp_path / "b", place, "--strip-components", "0")
    assert kept.problems == []
    assert {path: kept.files[path] for path in images} == pictures(*images)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("archives", "options", "said"),
    [
        pytest.param({"cats": "1.png", "dogs": "2.png"}, (), True, id="classes"),
        pytest.param({"images_1": "1.png", "images_2": "2.png"}, (), False, id="parts of one set"),
        pytest.param({"cats": "cats/1.png", "dogs": "dogs/2.png"}, (), False, id="folders"),
        pytest.param({"cats": "1.png", "dogs": "dogs/2.png"}, (), False, id="one is in a folder"),
        pytest.param(
            {"cats": "1.png", "dogs": "2.png"},
            ("--on-collision", "per-shard"),
            False,
            id="a folder for each",
        ),
    ],
)
@pytest.mark.parametrize("output", ["files", "zip"])
def test_it_is_said_that_the_files_of_different_archives_are_in_one_folder(
    tmp_path: Path, archives: Mapping[str, str], options: tuple[str, ...], said: bool, output: str
) -> None:
    place = source(
        tmp_path, {f"{name}.zip": pictures(path, f"{path}.png") for name, path in archives.items()}
    )
    brought = complete_run(tmp_path / "run", place, *FILES, *options, "--output", output)
    assert brought.problems == []
    assert (FLAT in brought.text) is said


def test_an_archive_of_one_file_needs_no_folder(tmp_path: Path) -> None:
    place = source(tmp_path, {"a.csv.zip": {"a.csv": b"x"}, "b.csv.zip": {"b.csv": b"y"}})
    assert FLAT not in complete_run(tmp_path / "run", place, *FILES).text


def test_paths_that_begin_with_a_removed_top_folder_are_found_beside_literal_ones(
    tmp_path: Path,
) -> None:
    images = ("coco/train/1.png", "gqa/images/1.png", "./gqa/images/2.png", "vg/VG/1.png")
    files = {"coco": images[:1], "gqa": ("gqa/images/1.png", "gqa/images/2.png"), "vg": images[3:]}
    archives = {f"{name}.zip": pictures(*paths) for name, paths in files.items()}
    brought = complete_run(tmp_path / "run", source(tmp_path, archives, *images))
    assert brought.problems == []
    named = [record["image"] for record in json.loads(brought.files["mix.json"])]
    assert named == [images[0], "images/1.png", "images/2.png", images[3]]
    assert {*named} < {*brought.files}
