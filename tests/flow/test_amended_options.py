"""Options that a resume changes after the verification has failed: what is published is what a
launch with these options publishes, and nothing is extracted again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from examples.samples import tree_digest
from tests.support.builders.contents import png, tarred, zipped
from tests.support.cli import Cli
from tests.support.servers.webserver import FaultyServer

LOCAL = ("launch", "--engine", "local", "--yes")
VERIFICATION, USAGE = 5, 2

Archives = Mapping[str, Mapping[str, bytes]]


def write(folder: Path, archives: Archives) -> Path:
    """Write zips and tars of these files into a new folder."""
    folder.mkdir()
    for name, files in archives.items():
        (folder / name).write_bytes((zipped if name.endswith(".zip") else tarred)(files))
    return folder


def pictures(pattern: str, count: int = 3, *, seed: int = 0) -> dict[str, bytes]:
    return {pattern.format(number): png(seed + number) for number in range(count)}


def records(paths: Mapping[str, bytes], field: str = "image", **more: Any) -> bytes:
    return b"".join(json.dumps({**more, field: path}).encode() + b"\n" for path in paths)


PLAIN = {"a.tar": pictures("train/{}.png"), "b.tar": pictures("val/{}.png", seed=9)}
TWO_TOPS = {f"{s}.zip": pictures(s + "/images/{}.png", seed=len(s)) for s in ("train", "val")}
BELOW = {"a.tar": {**pictures("top/images/{}.png"), "top/notes.txt": b"x"}}
TWICE = {"a.tar": {"images/0.png": png(1)}, "b.tar": {"images/0.png": png(2)}}
TWO_FILES = {
    "a.tar": {
        **pictures("images/{}.png"),
        "train.json": json.dumps([{"image": f"images/{n}.png"} for n in range(3)]).encode(),
        "other.json": b"[]",
    }
}
ONE_IS_MISSING = {
    "a.tar": {
        **pictures("images/{}.png"),
        "prompts.jsonl": records(pictures("images/{}.png", 4)),
    }
}
OTHER_FIELD = {
    "a.tar": {
        **pictures("images/{}.png"),
        "prompts.jsonl": records(pictures("images/{}.png"), "screen", image="absent.png"),
    }
}
OTHER_FOLDER = {
    "a.tar": {
        **pictures("thumbs/{}.png"),
        "prompts.jsonl": records(pictures("images/{}.png")),
    }
}
DEEP_FIELD = {
    "a.tar": {
        **pictures("images/{}.png"),
        "chat.jsonl": b"".join(
            json.dumps({"messages": [{"content": [{"image": path}]}]}).encode() + b"\n"
            for path in pictures("images/{}.png")
        ),
    }
}
PACKED_ZIP = ("--output", "zip")


@pytest.mark.parametrize(
    ("archives", "launched", "changed"),
    [
        pytest.param(PLAIN, (), ("--layout", "files"), id="no records"),
        pytest.param(PLAIN, PACKED_ZIP, ("--layout", "files"), id="no records, packed"),
        pytest.param(TWO_FILES, (), ("--records-file", "train.json"), id="one of two files"),
        pytest.param(
            TWICE,
            ("--layout", "files"),
            ("--on-collision", "keep-first"),
            id="two contents of a path",
        ),
        pytest.param(ONE_IS_MISSING, (), ("--on-bad-record", "drop"), id="drop a record"),
        pytest.param(
            ONE_IS_MISSING,
            ("--on-bad-record", "drop", "--expect-records", "4"),
            ("--expect-records", "3"),
            id="another number of records",
        ),
        pytest.param(OTHER_FIELD, (), ("--image-field", "screen"), id="another field"),
        pytest.param(
            DEEP_FIELD, (), ("--image-field", "messages.content.image"), id="a field in lists"
        ),
        pytest.param(OTHER_FOLDER, (), ("--match", "any-folder"), id="another folder"),
    ],
)
def test_a_resume_publishes_what_a_launch_with_these_options_publishes(
    cli: Cli,
    tmp_path: Path,
    archives: Archives,
    launched: tuple[str, ...],
    changed: tuple[str, ...],
) -> None:
    source = write(tmp_path / "source", archives)
    words: tuple[str | Path, ...] = (*LOCAL, "--local-path", source, *launched)
    data, fresh = tmp_path / "data", tmp_path / "fresh" / "data"  # packed outputs are named so
    cli.run(*words, "--dest", data, rc=VERIFICATION)
    cli.run("resume", rc=VERIFICATION)  # without a change it fails as before
    if "keep-first" not in changed:  # which reads the first archive's file again
        for archive in source.iterdir():
            archive.write_bytes(b"extracted already")
    done = cli.run("resume", *changed)
    assert f"changed options: {' '.join(changed)}" in done.out + done.err
    assert not (data / ".incoming").exists()

    again = write(tmp_path / "again", archives)
    cli.run(*LOCAL, "--local-path", again, *launched, *changed, "--dest", fresh)
    assert tree_digest(data) == tree_digest(fresh)
    cli.run("verify", "--deep", data)


def test_a_collision_of_archives_that_were_deleted_is_settled_by_one_resume(
    cli: Cli, web: FaultyServer, tmp_path: Path
) -> None:
    """The first archive's file was overwritten, so this archive is downloaded again."""
    source = write(tmp_path / "source", {**TWICE, "c.tar": {"images/0.png": png(3)}})
    words: tuple[str | Path, ...] = (*LOCAL, "--layout", "files")
    in_turn: tuple[str | Path, ...] = ("--parallel", "1", "--connections", "1")
    for archive in sorted(source.iterdir()):
        web.put(f"/{archive.name}", archive.read_bytes())
        in_turn += ("--url", web.url(f"/{archive.name}"))
    data, fresh = tmp_path / "data", tmp_path / "fresh"
    cli.run(*words, *in_turn, "--dest", data, rc=VERIFICATION)
    assert [path.name for path in data.glob(".incoming/*/archives/*")] == ["0002-c.0"]
    web.requests.clear()
    cli.run("resume", "--on-collision", "keep-first")
    assert not web.asked("/b.tar") and not web.asked("/c.tar")
    cli.run(*words, "--local-path", source, "--on-collision", "keep-first", "--dest", fresh)
    assert tree_digest(data) == tree_digest(fresh)


def test_the_receipt_and_a_repair_have_the_changed_options(cli: Cli, tmp_path: Path) -> None:
    source = write(tmp_path / "source", PLAIN)
    data = tmp_path / "data"
    expected = ("--expect-records", "4")
    cli.run(*LOCAL, "--local-path", source, "--dest", data, *expected, rc=VERIFICATION)
    cli.run("resume", "--layout", "files", *expected, rc=USAGE)
    cli.run("resume", "--layout", "files")
    receipt = json.loads((data / "RECEIPT.json").read_text())
    assert receipt["layout"]["name"] == "files"
    whole = tree_digest(data)
    (data / "train" / "1.png").unlink()
    cli.run("resume")
    assert tree_digest(data) == whole


@pytest.mark.parametrize("name", ["a.tar", "a.zip"])
def test_a_top_folder_that_was_removed_stays_removed(cli: Cli, tmp_path: Path, name: str) -> None:
    source = write(tmp_path / "source", {name: BELOW["a.tar"]})
    data = tmp_path / "data"
    cli.run(*LOCAL, "--local-path", source, "--dest", data, rc=VERIFICATION)
    cli.run("resume", "--layout", "files")
    assert (data / "notes.txt").exists()
    (data / "notes.txt").unlink()
    cli.run("resume")  # the repair extracts the archive again
    assert (data / "notes.txt").read_bytes() == b"x"
    assert not (data / "top").exists()


@pytest.mark.parametrize(
    ("archives", "changed", "said"),
    [
        pytest.param(
            ONE_IS_MISSING,
            ("--layout", "files"),
            "a.tar contains prompts.jsonl",
            id="records apart",
        ),
        pytest.param(
            {**BELOW, "b.tar": pictures("val/{}.png")},
            ("--layout", "files"),
            "the top folder of some archives was removed",
            id="one top folder of two",
        ),
        pytest.param(
            {"a.zip": BELOW["a.tar"], "b.zip": pictures("val/{}.png")},
            ("--layout", "files"),
            "the top folder of some archives was removed",
            id="one top folder of two zips",
        ),
        pytest.param(
            TWO_TOPS,
            ("--layout", "files"),
            "different top folders of archives were removed ('train', 'val')",
            id="two top folders",
        ),
        pytest.param(
            PLAIN, ("--records-file", "../x"), "is not a safe path inside", id="a path outside"
        ),
    ],
)
def test_a_change_that_needs_another_extraction_is_refused(
    cli: Cli, tmp_path: Path, archives: Archives, changed: tuple[str, ...], said: str
) -> None:
    source = write(tmp_path / "source", archives)
    words = (*LOCAL, "--local-path", source, "--dest", tmp_path / "data")
    cli.run(*words, rc=VERIFICATION)
    assert said in cli.run("resume", *changed, rc=USAGE).err
    assert said not in cli.run("resume", rc=VERIFICATION).err  # nothing was changed


def test_the_remedy_for_archives_without_records_keeps_their_top_folders(
    cli: Cli, tmp_path: Path
) -> None:
    source = write(tmp_path / "source", TWO_TOPS)
    words = (*LOCAL, "--local-path", source, "--dest", tmp_path / "data")
    said = " ".join(cli.run(*words, rc=VERIFICATION).out.split())
    assert "to publish files without records, launch with --layout files" in said
    cli.run(*words, "--layout", "files", "--overwrite")
    for folder in ("train", "val"):
        assert (tmp_path / "data" / folder / "images" / "0.png").exists()


def test_samples_whose_records_extraction_made_keep_their_layout(cli: Cli, tmp_path: Path) -> None:
    pairs = {**pictures("{}.png"), **{f"{n}.json": b'{"text": "a"}' for n in range(3)}}
    source = write(tmp_path / "source", {"a.tar": dict(sorted(pairs.items()))})
    words = (*LOCAL, "--local-path", source, "--dest", tmp_path / "data")
    cli.run(*words, "--expect-records", "4", rc=VERIFICATION)
    said = cli.run("resume", "--layout", "files", rc=USAGE).err
    assert "extraction made the records of a.tar" in said
    cli.run("resume", "--expect-records", "3")


def test_the_folders_of_archives_in_archives_keep_their_layout(cli: Cli, tmp_path: Path) -> None:
    inner = write(tmp_path / "inner", {"n01.tar": pictures("{}.png")}) / "n01.tar"
    source = write(tmp_path / "source", {"train.tar": {"n01.tar": inner.read_bytes()}})
    words = (*LOCAL, "--local-path", source, "--dest", tmp_path / "data", "--nested")
    said = cli.run(*words, rc=VERIFICATION)
    assert "launch with --layout files" in " ".join((said.out + said.err).split())
    assert "(--nested) depend on the layout" in cli.run("resume", "--layout", "files", rc=USAGE).err
    cli.run(*words, "--layout", "files", "--overwrite")
    assert (tmp_path / "data" / "n01" / "0.png").exists()


def test_a_published_dataset_keeps_its_options(cli: Cli, tmp_path: Path) -> None:
    source = write(tmp_path / "source", PLAIN)
    cli.run(*LOCAL, "--local-path", source, "--dest", tmp_path / "data", "--layout", "files")
    said = cli.run("resume", "--on-bad-record", "drop", rc=USAGE).err
    assert "launch again with --overwrite" in said
    (cli.cwd / "websight.toml").write_text('on-bad-record = "drop"\n')
    assert "nothing to do" in cli.run("resume").err  # a setting is not a change


def test_the_records_that_a_resume_names_may_be_a_link(cli: Cli, tmp_path: Path) -> None:
    source, dest = tmp_path / "source", tmp_path / "data"
    (source / "images").mkdir(parents=True)
    files = pictures("images/{}.png")
    for path, data in files.items():
        (source / path).write_bytes(data)
    (source / "first").write_bytes(records(files))
    (source / "latest").symlink_to("first")
    cli.run(*LOCAL, "--local-path", source, "--dest", dest, rc=VERIFICATION)
    cli.run("resume", "--records-file", "latest")
    assert (dest / "latest").read_bytes() == (dest / "first").read_bytes() == records(files)
