"""What import-linter does not see of the code's structure; its contracts are in ``setup.cfg``."""

from __future__ import annotations

import ast
import configparser
import functools
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
UNIT = ROOT / "tests" / "unit"
OURS = ("jobs", "orchestrator")
OF_THE_PROJECT = ("architecture", "docs", "packaging")  # tests of no module
NOT_AT_START = ("requests", "huggingface_hub", "submitit", "PIL", "pyarrow", "isal")
MOST_LINES = 500
LONGER = {"jobs.model": 640}  # a list of nouns, in which things are looked up

_DOTTED = re.compile(r"\b(?:jobs|orchestrator)(?:\.\w+)+")


@dataclass(frozen=True)
class Module:
    """A module of the product."""

    name: str
    path: Path
    tree: ast.Module


def _module(path: Path) -> Module:
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Module(name, path, ast.parse(path.read_text(encoding="utf-8"), str(path)))


@functools.cache
def modules() -> list[Module]:
    return [_module(path) for top in OURS for path in sorted((ROOT / top).rglob("*.py"))]


@functools.cache
def names() -> set[str]:
    return {module.name for module in modules()}


def _imports(tree: ast.Module) -> Iterator[str]:
    """Everything that is imported, at whatever depth; ``from a import b`` as ``a.b``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _named_in_strings(tree: ast.Module) -> Iterator[str]:
    """Modules of ours that strings name, which are no docstrings."""
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs:
            for dotted in _DOTTED.findall(node.value):
                parts = dotted.split(".")
                known = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
                yield next(name for name in known if name in names())


def _may_name(importer: str, named: str) -> bool:
    """A string links what import-linter cannot see: within one package, or to one below it."""
    below = importer.startswith("orchestrator") and named.split(".")[0] == "jobs"
    return below or importer.split(".")[:2] == named.split(".")[:2]


@pytest.fixture(autouse=True, scope="module")
def forget_the_modules() -> Iterator[None]:
    """Their trees are 60 MB, which every later test that forks would copy."""
    yield
    modules.cache_clear()


def test_no_string_links_a_module_to_one_above_it() -> None:
    wrong = [
        f"{module.name} -> {named}"
        for module in modules()
        for named in _named_in_strings(module.tree)
        if not _may_name(module.name, named)
    ]
    assert not wrong, "\n".join(wrong)


def test_links_by_strings_are_seen() -> None:
    tree = ast.parse(
        '"""About jobs.model."""\ncall = "jobs.worker:run_task"\nx = f"jobs.model {y}"'
    )
    assert sorted(_named_in_strings(tree)) == ["jobs.model", "jobs.worker"]
    assert not _may_name("jobs.extract.stage", "jobs.worker")
    assert _may_name("orchestrator.engines.base", "jobs.worker")


def test_nothing_private_of_a_library_is_imported() -> None:
    wrong = [
        f"{module.name} -> {name}"
        for module in modules()
        for name in _imports(module.tree)
        if name.partition(".")[0] not in OURS
        and any(part.startswith("_") and not part.endswith("__") for part in name.split("."))
    ]
    assert not wrong, "\n".join(wrong)


def _takes_errors_for_absence(call: ast.Call) -> bool:
    """Whether a call does on some version of Python; those of a folder's entries never do."""
    if not isinstance(call.func, ast.Attribute):
        return False
    of, name = ast.unparse(call.func.value), call.func.attr
    if of == "os.path":
        return name in ("exists", "lexists", "isfile", "isdir")
    return name in ("exists", "is_file", "is_dir") and of not in ("entry", "presence")


def test_what_exists_is_asked_in_one_module() -> None:
    wrong = [
        f"{module.name}:{node.lineno}"
        for module in modules()
        if module.name != "jobs.storage.presence"
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and _takes_errors_for_absence(node)
    ]
    # Paths of the user's that are not the run's: one is passed on, one has a message of its own.
    assert {place.partition(":")[0] for place in wrong} == {
        "jobs.transfer.connection",
        "orchestrator.lifecycle.request",
    }


def test_modules_are_of_a_size_to_be_read_and_say_what_they_know() -> None:
    long = {
        module.name: lines
        for module in modules()
        if (lines := len(module.path.read_text(encoding="utf-8").splitlines()))
        > LONGER.get(module.name, MOST_LINES)
    }
    assert long == {}
    assert [module.name for module in modules() if not ast.get_docstring(module.tree)] == []


def test_the_docstring_of_a_package_names_each_of_its_modules() -> None:
    docstrings = {
        module.name: ast.get_docstring(module.tree) or ""
        for module in modules()
        if module.path.name == "__init__.py"
        and module.name not in OURS
        and not module.tree.body[1:]
    }
    unnamed = [
        module.name
        for module in modules()
        for package, _, name in [module.name.rpartition(".")]
        if package in docstrings and f"``{name}``" not in docstrings[package]
    ]
    assert unnamed == []


def test_the_unit_tests_mirror_the_packages() -> None:
    """``PACKAGE/test_MODULE.py``, or ``test_MODULE_ASPECT.py``; a package may be one module."""
    inside = {name.partition(".")[2].replace(".", "/") for name in names()}
    packages = {
        module.name.partition(".")[2].replace(".", "/")
        for module in modules()
        if module.path.name == "__init__.py" and module.name not in OURS
    }
    tested = set()
    for path in UNIT.rglob("test_*.py"):
        name = path.relative_to(UNIT).with_suffix("").as_posix().replace("test_", "")
        words = name.split("_")
        found = {"_".join(words[:n]) for n in range(len(words), 0, -1)} & inside
        assert found or name.startswith("support/") or name in OF_THE_PROJECT, path
        tested |= {each.rpartition("/")[0] for each in found} | (found & packages)
    assert sorted(packages - tested) == []


@pytest.mark.parametrize(
    ("registry", "chooser"),
    [
        ("jobs.archives.registry", "_reader"),
        ("jobs.sources.registry", "_class_of"),
        ("jobs.outputs.registry", None),
        ("orchestrator.engines.registry", "engine_named"),
    ],
)
def test_setup_cfg_protects_what_only_a_registry_may_import(
    registry: str, chooser: str | None
) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    protected = setup["importlinter:contract:extensions"]["protected_modules"].split()
    tree: ast.AST = next(module.tree for module in modules() if module.name == registry)
    if chooser is not None:
        functions = (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))
        tree = next(function for function in functions if function.name == chooser)
    package = registry.rpartition(".")[0]
    chosen = [
        node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(package)
    ]
    assert chosen
    assert [
        name
        for name in chosen
        if name != f"{package}.base" and not any(f"{name}.".startswith(f"{p}.") for p in protected)
    ] == []


def test_the_packages_are_typed_and_their_licence_is_there() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    for package in OURS:
        assert (ROOT / package / "py.typed").is_file()
        assert setup["options.package_data"][package] == "py.typed"
    assert setup["metadata"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / setup["metadata"]["license_files"]).read_text()


def test_every_package_has_its_init_so_that_it_is_installed() -> None:
    folders = {module.path.parent for module in modules()}
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


def test_a_launch_does_not_load_the_code_of_finalize() -> None:
    """A fifth of the CPU time before the first request, which nothing else can hide."""
    program = (
        "import sys, orchestrator.cli.launch, orchestrator.cli.messages\n"
        "print('loaded:', *[name for name in sys.modules if name.startswith('jobs.finalize')])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["loaded:"]
