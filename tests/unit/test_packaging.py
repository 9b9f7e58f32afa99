"""The metadata agree with the documents about them, with what CI pins, and with the code."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import jobs

ROOT = Path(__file__).resolve().parents[2]
SETUP = configparser.ConfigParser(interpolation=None)
SETUP.read(ROOT / "setup.cfg")
EXPLAINED = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")

_NAME = re.compile(r"[\w.-]+")


def _names(lines: str) -> set[str]:
    """The packages of a list of requirements, without the extras that it includes."""
    return {
        found[0].lower()
        for line in lines.splitlines()
        if line and not line.startswith("%(") and (found := _NAME.match(line))
    }


def _rows(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading of the document."""
    below = EXPLAINED.partition(f"# {heading}\n")[2]
    table = re.search(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", below, re.M)
    assert table, heading
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in table[1].splitlines()]


def test_every_dependency_has_its_reason_and_nothing_else_has_one() -> None:
    explained = {row[0].lower() for row in _rows("Why each dependency")}
    assert explained == _names(SETUP["options"]["install_requires"])


def test_every_extra_is_listed_with_its_packages() -> None:
    listed = {row[0].strip("`"): _names(row[1].replace(", ", "\n")) for row in _rows("Extras")}
    assert listed == {
        extra: _names(lines) for extra, lines in SETUP["options.extras_require"].items()
    }


def test_ci_pins_every_dependency() -> None:
    pinned = _names((ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8"))
    wanted = _names(SETUP["options"]["install_requires"])
    for lines in SETUP["options.extras_require"].values():
        wanted |= _names(lines)
    assert {re.sub(r"[._]", "-", name) for name in wanted} <= pinned


def test_the_version_is_written_in_one_place() -> None:
    assert SETUP["metadata"]["version"] == "attr: jobs.__version__"
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert not re.search(r"^version:", citation, re.M)
    assert f"## {jobs.__version__} " in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
