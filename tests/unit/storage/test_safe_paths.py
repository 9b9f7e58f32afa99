"""Names from archives: which are safe, how they are shown, and the folders they need."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from jobs.errors import ArchiveError, Cause, StorageError, UnsafeMemberError
from jobs.storage.safe_paths import (
    MAX_COMPONENT,
    MAX_DEPTH,
    MAX_PATH,
    Folders,
    all_safe,
    is_folder_itself,
    junk_kind,
    quoted,
    safe_path,
    text_of,
)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"a", b"a"),
        (b"a/b.png", b"a/b.png"),
        (b"./a//b/./c/", b"a/b/c"),
        (b"..a/b../...", b"..a/b../..."),
        (b"C:\\x\\..\\y", b"C:\\x\\..\\y"),
        (b"-rf; $(id) *", b"-rf; $(id) *"),
        (b"\xff\xfe.png", b"\xff\xfe.png"),
        ("ünï/ж".encode(), "ünï/ж".encode()),
        (b"x" * MAX_COMPONENT, b"x" * MAX_COMPONENT),
        (b"d/" * (MAX_DEPTH - 1) + b"x", b"d/" * (MAX_DEPTH - 1) + b"x"),
    ],
)
def test_a_safe_name_means_one_relative_path(name: bytes, path: bytes) -> None:
    assert safe_path(name, archive="a.tar") == path
    assert safe_path(path, archive="a.tar") == path


@pytest.mark.parametrize(
    ("name", "fact"),
    [
        (b"/etc/passwd", "absolute"),
        (b"//etc", "absolute"),
        (b"/", "absolute"),
        (b"..", "contains '..'"),
        (b"a/../b", "contains '..'"),
        (b"a/..", "contains '..'"),
        (b"./../a", "contains '..'"),
        (b"", "no name"),
        (b".", "no name"),
        (b"./.", "no name"),
        (b"a\0b", "control"),
        (b"a\nb", "control"),
        (b"a\x1b[2J", "control"),
        (b"a\x7f", "control"),
        (b"x" * (MAX_COMPONENT + 1), f"longer than {MAX_COMPONENT}"),
        (b"d/" * MAX_DEPTH + b"x", f"more than {MAX_DEPTH} folders"),
        (b"/".join([b"y" * 200] * (MAX_PATH // 200 + 1)), f"longer than {MAX_PATH}"),
    ],
)
def test_an_unsafe_name_is_refused_with_its_reason_on_one_line(name: bytes, fact: str) -> None:
    with pytest.raises(UnsafeMemberError, match=fact) as caught:
        safe_path(name, archive="a.tar")
    assert caught.value.message.startswith("a.tar: member ")
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 500
    # A folder has the same rules, so these have to be renamed.
    assert ("rename it" in caught.value.message) is fact.startswith(("control", "longer", "more"))


@pytest.mark.parametrize(
    ("name", "itself"),
    [(b".", True), (b"./", True), (b".//.", True), (b"..", False), (b"./a", False), (b"", False)],
)
def test_the_data_folder_itself_is_distinguished_from_what_is_in_it(
    name: bytes, itself: bool
) -> None:
    assert is_folder_itself(name) is itself


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (b"__MACOSX", "__MACOSX"),
        (b"__MACOSX/a/b", "__MACOSX"),
        (b"a/._b", "._*"),
        (b"._b", "._*"),
        (b"a/.DS_Store", ".DS_Store"),
        (b"a/__MACOSX/b", None),
        (b"a/Icon\r", "Icon"),
        (b"a/Icon", None),
        (b"a/Thumbs.db", "Thumbs.db"),
        (b"THUMBS.DB", "Thumbs.db"),
        (b"a/Desktop.ini", "desktop.ini"),
        (b"a/.ipynb_checkpoints/b-checkpoint.png", ".ipynb_checkpoints"),
        (b"a/.ipynb_checkpoints/", ".ipynb_checkpoints"),
        (b"a/@eaDir/b.png/SYNOPHOTO_THUMB_M.jpg", "@eaDir"),
        (b"a/b.png:Zone.Identifier", "*:Zone.Identifier"),
        ("a/b.png\uf03aZone.Identifier".encode(), "*:Zone.Identifier"),
        (b"a/b.png:Zone.Identifier:$DATA", "*:Zone.Identifier"),
        (b"a/Zone.Identifier.png", None),
        (b"a/.gitkeep", None),
        (b"a/_SUCCESS", None),
        (b"a/.DS_Store.png", None),
        (b"_.png", None),
    ],
)
def test_a_desktops_leftovers_are_distinguished_from_data(path: bytes, kind: str | None) -> None:
    assert junk_kind(path) == kind


def test_bytes_that_are_no_text_are_kept_in_hex() -> None:
    assert text_of("ж".encode()) == ("ж", None)
    assert text_of(b"a\xff") == ("a\\xff", "61ff")


def test_a_long_name_is_shown_by_both_its_ends() -> None:
    reported = quoted(b"a" * 5000 + b"\n.png")
    assert len(reported) < 220
    assert reported.startswith("'aaa") and "…" in reported and reported.endswith("\\n.png'")


def test_folders_are_made_as_they_are_needed(tmp_path: Path) -> None:
    folders = Folders(tmp_path, archive="a.tar")
    place = folders.place(b"a/b/c.png")
    assert place == bytes(tmp_path) + b"/a/b/c.png"
    assert (tmp_path / "a/b").is_dir()
    assert folders.place(b"top.png") == bytes(tmp_path) + b"/top.png"


def test_the_data_folder_may_be_reached_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "data").symlink_to("real")
    Folders(tmp_path / "data", archive="a.tar").place(b"a/b")
    assert (tmp_path / "real/a").is_dir()


@pytest.mark.parametrize("path", [b"a/x", b"a/b/x", b"a/b/c/x"])
@pytest.mark.parametrize("target", ["..", "/", "nowhere", "../data/real"])
def test_no_link_on_disk_is_followed_wherever_it_is_and_points(
    tmp_path: Path, path: bytes, target: str
) -> None:
    data = tmp_path / "data"
    (data / "real").mkdir(parents=True)
    planted = data / path.decode().rpartition("/")[0]
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.symlink_to(target)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UnsafeMemberError, match="symbolic link on disk"):
        Folders(data, archive="a.tar").place(path[:-1] + b"deeper/x")
    assert sorted(tmp_path.rglob("*")) == before


def test_a_file_where_a_folder_should_be_is_a_collision(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    with pytest.raises(ArchiveError) as caught:
        Folders(tmp_path, archive="a.tar").place(b"a/b/c")
    assert caught.value.cause is Cause.COLLISION


def test_a_file_system_that_refuses_is_named_with_the_folder(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="gone/a"):
        Folders(tmp_path / "gone", archive="a.tar").place(b"a/b")


def test_many_threads_and_objects_make_one_tree(tmp_path: Path) -> None:
    paths = [b"%d/%d/%d/x" % (i % 3, i % 5, i % 7) for i in range(400)]
    shared = Folders(tmp_path, archive="a.tar")
    others = [Folders(tmp_path, archive="b.tar") for _ in range(4)]
    with ThreadPoolExecutor(8) as pool:
        for folders in (shared, shared, shared, shared, *others):
            pool.map(folders.place, paths)
        places = set(pool.map(shared.place, paths))
    assert len(places) == 105
    assert len([path for path in tmp_path.rglob("*") if path.is_dir()]) == 3 + 15 + 105


def test_forgetting_folders_does_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folders, "_MOST_KNOWN", 3)
    folders = Folders(tmp_path, archive="a.tar")
    for _ in range(2):
        for number in range(9):
            folders.place(b"%d/y/x" % number)
    assert len(list(tmp_path.glob("*/y"))) == 9


PLAIN = (
    b"a", b"a.b", b"a/b-c.d_e", b"A" * MAX_COMPONENT, b"0/1/2.3.4", b"a b (1).png", b"\xff.png",
    "ünï/ж".encode(), b"a..b/c.", b"!", b"C:\\x",
)  # fmt: skip
TO_EXAMINE = (
    b"", b".", b"..", b".a", b"/a", b"a/", b"a//b", b"a/./b", b"a/../b", b"a/.b", b"a\nb", b"a\0",
    b"a\x7f", b"A" * (MAX_COMPONENT + 1), b"Thumbs.db", b"x/DESKTOP.INI", b"__MACOSX/a", b"._a",
    b"a/@eaDir/b", b"$Recycle.bin/x", b"System Volume Information/x", b"a:Zone.Identifier",
    "a\uf03aZone.Identifier".encode(), b"a_zone.identifier",
)  # fmt: skip


def test_names_are_safe_together_if_each_is_a_safe_path_as_it_is_and_no_junk() -> None:
    for name in PLAIN:
        assert safe_path(name, archive="a.tar") == name and junk_kind(name) is None
        assert all_safe([name])
    assert all_safe(PLAIN)
    rng = random.Random(1)
    for name in TO_EXAMINE:
        assert not all_safe([name])
        assert not all_safe(rng.sample((*PLAIN, name), len(PLAIN) + 1))


def test_places_of_several_files_are_those_of_each(tmp_path: Path) -> None:
    paths = [b"a", b"b/c", b"b/d", b"e/f/g"]
    together, alone = tmp_path / "together", tmp_path / "alone"
    together.mkdir()
    alone.mkdir()
    places = Folders(together, archive="a.tar").places(paths)
    assert places == [bytes(together) + b"/" + path for path in paths]
    one = Folders(alone, archive="a.tar")
    assert [one.place(path) for path in paths] == [bytes(alone) + b"/" + path for path in paths]
    assert sorted(path.name for path in together.rglob("*")) == ["b", "e", "f"]
