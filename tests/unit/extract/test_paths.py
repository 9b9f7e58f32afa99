"""Where a member's file is, from its name."""

from __future__ import annotations

import pytest

from jobs.extract import paths
from jobs.extract.paths import MemberPaths, PathFilter, key_of
from jobs.model import Layout, OnCollision, Options
from tests.support.builders.runs import RunBuilder


@pytest.mark.parametrize(
    ("folder", "path", "placed"),
    [
        pytest.param(b"", b"a.png", b"a.png", id="an archive beside everything"),
        pytest.param(b"images/x/", b"a.png", b"images/x/a.png", id="one among the images"),
        pytest.param(b"images/x/", b"images/a.png", b"images/a.png", id="with an images folder"),
        pytest.param(b"images/x/", b"prompts.jsonl", b"prompts.jsonl", id="with records"),
        pytest.param(b"more/", b"images/a.png", b"more/images/a.png", id="elsewhere"),
        pytest.param(b"more/", b"prompts.jsonl", b"more/prompts.jsonl", id="records elsewhere"),
    ],
)
def test_an_archive_in_a_folder_has_its_files_there_but_one_among_the_images_may_hold_the_dataset(
    folder: bytes, path: bytes, placed: bytes
) -> None:
    plan = RunBuilder().plan
    assert MemberPaths(plan, plan.shards[0], top=None).below(folder, path) == placed


NAMES = (b"set/images/a.png", b"set/b/c.txt")
WEBSIGHT = Options(layout=Layout("websight"))


@pytest.mark.parametrize(
    ("options", "top", "names", "placed"),
    [
        (WEBSIGHT, None, NAMES, NAMES),
        (WEBSIGHT, "set", NAMES, (b"images/a.png", b"b/c.txt")),
        (WEBSIGHT, "other", NAMES, None),
        (WEBSIGHT, "set", (*NAMES, b"set/prompts.jsonl"), None),
        (WEBSIGHT, None, (*NAMES, b"a//b"), None),
        (WEBSIGHT, None, (*NAMES, b".incoming/x"), None),
        (WEBSIGHT, None, (*NAMES, b"desktop.ini"), None),
        (Options(strip_components=1), None, NAMES, None),
        (Options(on_collision=OnCollision.PER_SHARD), None, NAMES, None),
    ],
    ids=["as named", "top", "outside", "records", "odd", "reserved", "junk", "stripped", "own"],
)
def test_names_are_mapped_together_if_each_is_mapped_in_the_usual_way(
    options: Options, top: str | None, names: tuple[bytes, ...], placed: tuple[bytes, ...] | None
) -> None:
    plan = RunBuilder(options=options).plan
    one = MemberPaths(plan, plan.shards[0], top=top)
    together = one.of_safe(names, b"")
    assert (together and tuple(together)) == placed
    if placed is not None:
        assert placed == tuple(one.inner(name) for name in names)
    assert one.of_safe(NAMES, b"below/") is None


def test_paths_that_are_added_together_are_known_as_those_added_one_by_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(paths, "_FEW", 40)  # the others are bits
    numbers = [b"images/%d.png" % number for number in range(100)]
    seen = PathFilter()
    for at in range(0, 100, 7):
        assert seen.add_all(numbers[at : at + 7])
    for path in (numbers[0], numbers[-1], b"IMAGES/50.PNG"):
        assert not seen.add_all([b"new", path])
        assert seen.add(path) and key_of(path) in seen.suspects
    assert not seen.add(b"new")  # it was not added together with one that may be a duplicate
    assert not seen.add_all([b"twice", b"Twice"])
    assert not seen.add_all(["straße".encode(), b"STRASSE"])
    assert seen.add_all([b"two", b"lines\nof"]) and seen.add(b"lines\nof")
