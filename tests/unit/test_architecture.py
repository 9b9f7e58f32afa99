"""The floors of the house: what may import what, read from the code itself."""

from __future__ import annotations

import ast
import configparser
import graphlib
import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# One row a floor, the lowest first. A name is a module or a package with all in it. What stands
# together in brackets is one stage's own: these modules know each other.
FLOORS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("jobs.rlimits",),),
    (("jobs.errors",),),
    (
        ("jobs.model",),
        ("jobs.storage.atomic",),
        ("jobs.storage.digest",),
        ("jobs.storage.write_behind",),
        ("jobs.runtime.background",),
        ("jobs.formats.magic",),
        ("jobs._speedups",),
    ),
    (
        ("jobs.storage.run_folder",),
        ("jobs.problems",),
        ("jobs.storage.staging",),
        ("jobs.storage.safe_paths",),
        ("jobs.formats.pictures",),
        ("jobs.formats.json_text",),
        ("jobs.transfer",),
        ("jobs.runtime.progress",),
        ("jobs.storage.manifest",),
    ),
    (("jobs.storage.folder_listing",),),  # what a folder holds, for its source and its reader
    (("jobs.sources.registry",), ("jobs.archives.registry",), ("jobs.checks.registry",)),
    (("jobs.extract.stage",), ("jobs.finalize.stage", "jobs.verify.dataset")),
    (("jobs.download.stage",),),  # it extracts what it can meanwhile
    (
        ("jobs.worker",),
        ("orchestrator.resources",),
        ("orchestrator.engines.slurm.arguments",),
        ("orchestrator.filesystems",),
        ("orchestrator.cli.settings",),
        ("orchestrator.display.terminal",),
        ("orchestrator.units",),
    ),
    (("orchestrator.engines.registry",), ("orchestrator.doctor.node_probe",)),
    (
        ("orchestrator.lifecycle.planning",),
        ("orchestrator.lifecycle.preflight",),
        ("orchestrator.inspection.state",),
        ("orchestrator.lifecycle.claim",),
        ("orchestrator.inspection.journal",),
        ("orchestrator.inspection.task_logs",),
        ("orchestrator.inspection.pending_reasons",),
    ),
    # What puts several of those together, and then what is made of it.
    (("orchestrator.inspection.evidence",), ("orchestrator.inspection.metrics",)),
    (
        ("orchestrator.inspection.futures",),
        ("orchestrator.lifecycle.submission",),
        ("orchestrator.lifecycle.recovery",),
        ("orchestrator.inspection.status_json",),
        ("orchestrator.inspection.run_list",),
        ("orchestrator.display.log_output",),
    ),
    (("orchestrator.display.status_screen",),),
    (
        ("orchestrator.display.report",),
        ("orchestrator.display.live",),
        (
            "orchestrator.doctor.checks",
            "orchestrator.doctor.site_profile",
            "orchestrator.doctor.node_environment",
        ),
    ),
    (("orchestrator.api",),),
    (("orchestrator.cli",),),
)
ROOMLESS = {"jobs", "orchestrator"}  # the version alone is there; they import nothing of ours
# What is plugged in: each sees its package's base and helpers, and only the registry sees it.
PLUGS = {
    "jobs.sources.registry": ("hub", "url", "local"),
    "jobs.archives.registry": ("tar", "zip", "compressed", "plain", "tree"),
    "jobs.checks.registry": ("png", "jpeg", "boxes", "others", "decode"),
    "orchestrator.engines.registry": ("slurm", "local"),
}
NOT_FOR_JOBS = {"orchestrator", "click", "submitit", "tqdm"}
NOT_AT_START = ("requests", "huggingface_hub", "submitit", "PIL", "pyarrow", "isal")
MOST_LINES = 500
LONGER = {"jobs.model": 600}  # a list of nouns, which is looked things up in


@dataclass(frozen=True)
class Room:
    """Where a module stands: its floor, and the stage that it belongs to on that floor."""

    floor: int
    group: int


@dataclass(frozen=True)
class Module:
    """A module of the product and everything that it imports, at whatever depth."""

    name: str
    path: Path
    imports: frozenset[str]  # absolute, `from a import b` as `a.b`


def _module(path: Path) -> Module:
    parts = path.relative_to(ROOT).with_suffix("").parts
    package = parts[-1] == "__init__"
    name = ".".join(parts[:-1] if package else parts)
    return Module(name, path, frozenset(_imports(path, name if package else ".".join(parts[:-1]))))


def _imports(path: Path, package: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(base, package) if node.level else base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            called = node.func.id if isinstance(node.func, ast.Name) else called
            first = node.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield str(first.value)


MODULES = [
    _module(path) for top in ("jobs", "orchestrator") for path in sorted((ROOT / top).rglob("*.py"))
]
NAMES = {module.name for module in MODULES}
HIGHEST_FIRST = sorted(NAMES, key=len, reverse=True)


def _within(name: str, package: str) -> bool:
    return name == package or name.startswith(f"{package}.")


def _ours(name: str) -> str | None:
    """The module of ours that importing `name` (perhaps a name in a module) loads."""
    return next((known for known in HIGHEST_FIRST if _within(name, known)), None)


def _room(name: str) -> Room | None:
    for floor, groups in enumerate(FLOORS):
        for group, members in enumerate(groups):
            if any(_within(name, member) for member in members):
                return Room(floor, group)
    return None


def _may_import(importer: str, imported: str) -> bool:
    if imported in ROOMLESS:
        return True
    mine, other = _room(importer), _room(imported)
    if mine is None or other is None:
        return False
    return other.floor < mine.floor or mine == other


def _edges() -> list[tuple[str, str]]:
    found = {
        (module.name, imported)
        for module in MODULES
        for imported in map(_ours, module.imports)
        if imported is not None and imported != module.name
    }
    return sorted(found)


def test_every_module_stands_on_a_floor() -> None:
    assert [name for name in sorted(NAMES - ROOMLESS) if _room(name) is None] == []


def test_imports_go_strictly_down_and_modules_of_one_floor_are_strangers() -> None:
    wrong = [
        f"{importer} -> {name}" for importer, name in _edges() if not _may_import(importer, name)
    ]
    assert not wrong, "\n".join(wrong)


def _sorted_upwards(edges: list[tuple[str, str]]) -> list[str]:
    """The modules, each after all that it imports; CycleError names a circle."""
    graph: dict[str, set[str]] = {}
    for importer, name in edges:
        graph.setdefault(importer, set()).add(name)
    return list(graphlib.TopologicalSorter(graph).static_order())


def test_no_imports_run_in_a_circle_not_even_for_types() -> None:
    try:
        _sorted_upwards(_edges())
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_a_circle_is_seen() -> None:
    line = [("a", "b"), ("b", "c")]
    assert _sorted_upwards(line) == ["c", "b", "a"]
    with pytest.raises(graphlib.CycleError):
        _sorted_upwards([*line, ("c", "a")])


@pytest.mark.parametrize("package", sorted(PLUGS))
def test_only_its_registry_sees_a_plug(package: str) -> None:
    plugs = {f"{package}.{name}" for name in PLUGS[package]}
    seen = {(importer, plug) for importer, plug in _edges() if plug in plugs}
    wrong = [f"{importer} -> {plug}" for importer, plug in sorted(seen) if importer != package]
    assert not wrong, "\n".join(wrong)
    assert {plug for _, plug in seen} == plugs


def test_jobs_needs_neither_the_orchestrator_nor_its_libraries() -> None:
    wrong = [
        f"{module.name} -> {name}"
        for module in MODULES
        if _within(module.name, "jobs")
        for name in sorted(module.imports)
        if name.partition(".")[0] in NOT_FOR_JOBS
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_private_of_a_library_is_imported() -> None:
    wrong = [
        f"{module.name} -> {name}"
        for module in MODULES
        for name in sorted(module.imports)
        if _ours(name) is None
        and any(part.startswith("_") and not part.endswith("__") for part in name.split("."))
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        pytest.param("jobs.download.stage", "jobs.sources.base", True, id="down"),
        pytest.param("jobs.sources.hub", "jobs.download.stage", False, id="up"),
        pytest.param(
            "jobs.sources.hub", "jobs.archives.tar.archive", False, id="another plug package"
        ),
        pytest.param("jobs.sources.hub", "jobs.sources.base", True, id="its own package"),
        pytest.param(
            "jobs.extract.stage", "jobs.finalize.stage", False, id="a stranger of the same floor"
        ),
        pytest.param(
            "jobs.finalize.stage.audit", "jobs.finalize.merge", True, id="one stage's own"
        ),
        pytest.param("jobs.worker", "orchestrator.resources", False, id="jobs to orchestrator"),
        pytest.param("jobs.attic", "jobs.model", False, id="not on the table"),
    ],
)
def test_the_rule_itself_tells_right_from_wrong(
    importer: str, imported: str, allowed: bool
) -> None:
    assert _may_import(importer, imported) is allowed


def test_lazy_relative_type_checking_and_dynamic_imports_are_all_seen(tmp_path: Path) -> None:
    source = tmp_path / "module.py"
    source.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import click\n"
        "from . import base\nfrom ..model import Plan\n"
        "def later():\n    from jobs import worker\n    import_module('tqdm')\n"
    )
    found = set(_imports(source, "jobs.sources.registry"))
    assert {"click", "jobs.sources.base", "jobs.model.Plan", "jobs.worker", "tqdm"} <= found


def test_modules_are_short_and_say_what_they_know() -> None:
    long = {
        module.name: lines
        for module in MODULES
        if (lines := len(module.path.read_text(encoding="utf-8").splitlines()))
        > LONGER.get(module.name, MOST_LINES)
    }
    assert long == {}
    silent = [
        module.name
        for module in MODULES
        if not ast.get_docstring(ast.parse(module.path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_the_packages_are_typed_and_their_licence_is_there() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for package in ("jobs", "orchestrator"):
        assert (ROOT / package / "py.typed").is_file()
        assert setup["options.package_data"][package] == "py.typed"
    assert setup["metadata"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / setup["metadata"]["license_files"]).read_text()


def test_every_package_has_its_init_so_that_it_is_installed() -> None:
    folders = {module.path.parent for module in MODULES}
    assert [
        str(folder) for folder in sorted(folders) if not (folder / "__init__.py").is_file()
    ] == []


@pytest.mark.parametrize("words", [["--help"], ["launch", "--help"], ["status", "--help"]])
def test_help_loads_no_heavy_library(words: list[str]) -> None:
    program = (
        "import sys, orchestrator.cli\n"
        "try:\n    orchestrator.cli.main(sys.argv[1:])\n"
        "except SystemExit as end:\n    assert end.code in (0, None), end.code\n"
        f"print('heavy:', *[name for name in {NOT_AT_START!r} if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1].split() == ["heavy:"]
