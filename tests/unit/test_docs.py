"""The documents name existing things and link to existing pages."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest

from jobs.errors import Cause
from jobs.storage import atomic
from jobs.storage.run_folder import RunFolder
from orchestrator import api
from orchestrator.cli import exit_codes
from orchestrator.inspection import status_json
from tests.support import api_reference, options_table
from tests.support.builders import runs

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
README = (ROOT / "README.md").read_text(encoding="utf-8")
GUIDE = options_table.GUIDE.read_text(encoding="utf-8")
COMMANDS = options_table.commands()

_LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_FILE = r"`((?:jobs|orchestrator|tests|examples|benchmarks|docs)/[\w/.]+)`"
_NAMED_IN = r"((?:`\w+`(?:, | and )?)+)(?: in | of | \()" + _FILE
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.M | re.S)


def _anchors(text: str) -> set[str]:
    """GitHub's anchors of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(_BLOCK, "", text), re.M)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for found in _LINK.finditer(re.sub(_BLOCK, "", text)):
        target = found[1] or found[2]
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        there = (document.parent / name) if name else document
        assert there.exists(), f"{document.name}: {target}"
        if anchor:
            assert anchor in _anchors(there.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_code_that_a_document_names_is_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    files = {name for name in re.findall(_FILE, text) if not re.search("NAME|PACKAGE", name)}
    assert [name for name in sorted(files) if not (ROOT / name).exists()] == []
    for names, file in re.findall(_NAMED_IN, text):
        if file in files and (ROOT / file).is_file():
            code = (ROOT / file).read_text(encoding="utf-8")
            for name in re.findall(r"\w+(?=`)", names):
                assert re.search(rf"\b{name}\b", code), f"{file} has no {name}"


def test_the_options_reference_is_what_the_commands_take() -> None:
    assert options_table.reference() in GUIDE, "update it: python -m tests.support.options_table"


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_each_command_is_in_the_readme_and_in_the_guide(name: str) -> None:
    assert re.search(rf"^\| `{name}\b", README, re.M)
    assert f"websight-orchestrate {name}" in GUIDE


def test_the_readme_lists_every_exit_code() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.M)}
    known = {exit_codes.of_cause(cause) for cause in Cause} | {
        exit_codes.DONE,
        exit_codes.INTERRUPTED,
    }
    assert listed == known


def _typed(text: str) -> list[list[str]]:
    """The commands in the documents, each as its words."""
    found = []
    for kind, block in _BLOCK.findall(text):
        if kind:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            start = line.find("websight-orchestrate ")
            if start in (0, 4) or line.startswith(("$ websight", "JOB=$(websight")):
                words = shlex.split(line[start:].rstrip(")"), comments=True)
                found.append(words[1:])
    return found


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_command_in_the_documents_is_understood(document: Path) -> None:
    """Every option and argument is parsed by its command, and nothing is carried out."""
    for words in _typed(document.read_text(encoding="utf-8")):
        while words[0].startswith("-"):
            words = words[2:] if words[0] == "--profile" else words[1:]
        if "…" not in words:
            command = COMMANDS[words[0]]
            assert command.make_context(words[0], list(words[1:])), words


def test_no_option_is_named_that_is_not_there() -> None:
    known = {"--help", "--version", "--profile", "--depth"}
    for command in COMMANDS.values():
        for param in command.params:
            if isinstance(param, click.Option):
                known |= {*param.opts, *param.secondary_opts}
    foreign = {
        "--dependency",
        "--export",
        "--kill-on-invalid-dep",
        "--propagate",
        "--test-only",
        "--version",
    }  # of sbatch and git
    for document in DOCUMENTS:
        text = re.sub(
            r"`(sbatch|git|pip|sha256sum|b3sum|aria2c|find|hf|python -m) [^`]*`",
            "",
            document.read_text(),
        )
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text):
            assert option in known | foreign, f"{document.name}: {option}"


def test_the_documents_name_no_secret() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8")
        assert not re.search(r"hf_[A-Za-z0-9]{20}", text), document.name


def test_the_reference_of_the_api_is_made_from_its_docstrings() -> None:
    written = api_reference.REFERENCE.read_text(encoding="utf-8")
    assert written == api_reference.reference(), "run: python -m tests.support.api_reference"
    assert all(heading in written for heading in api.__all__)


def _names(value: Any) -> set[str]:
    """The names of all fields of an object, at any depth."""
    if isinstance(value, list):
        return set().union(*map(_names, value))
    if not isinstance(value, dict):
        return set()
    return set(value).union(*map(_names, value.values()))


def test_the_object_of_status_is_described_with_all_its_fields() -> None:
    text = (ROOT / "docs" / "run-folder.md").read_text(encoding="utf-8")
    listed = next(block[2] for block in _BLOCK.finditer(text) if block[2].startswith("schema"))
    state = runs.under_way().state()
    made = status_json.as_json(state, RunFolder(Path("/logs") / runs.RUN_ID), runs.NOW)
    assert _names(json.loads(atomic.dumps(made))) - set(re.findall(r"\w+", listed)) == set()
