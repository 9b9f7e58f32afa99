"""What the fault matrix shares: a shop of quick processes, and a dataset small enough to repeat."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from examples import samples
from examples.samples import tree_digest
from tests.support.faults.forkshop import Shop
from tests.support.faults.matrix import Scene
from tests.support.servers.webserver import FaultyServer

Stage = Callable[..., Scene]


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of eight records. Not to be changed."""
    return samples.make_dataset(tmp_path_factory.mktemp("small"), records=8)


@pytest.fixture(scope="session")
def whole(small: Path) -> dict[str, str]:
    """What any run over it must publish."""
    return tree_digest(small)


@pytest.fixture(scope="session")
def archives(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with it as a tar.gz and a zip. Not to be changed."""
    made = tmp_path_factory.mktemp("made")
    folder = tmp_path_factory.mktemp("archives")
    for number, fmt in enumerate(("tar.gz", "zip")):
        path = samples.pack_shards(small, made / fmt, 2, fmt)[number]
        path.rename(folder / path.name)
    return folder


@pytest.fixture
def scene(shop: Shop, archives: Path, whole: dict[str, str], tmp_path: Path) -> Stage:
    """Makes scenes by name: over the folder of archives unless another source is given, and run
    by the common shop unless another is."""

    def make(
        name: str = "scene",
        source: Sequence[str | Path] | None = None,
        *,
        at: Shop | None = None,
    ) -> Scene:
        words = ("--local-path", archives) if source is None else source
        return Scene(at or shop, tmp_path / name, words, whole)

    return make


@pytest.fixture
def served(archives: Path, web: FaultyServer) -> tuple[str, ...]:
    """The options for these archives on a web server; 50 kB a part makes several of each."""
    words = ["--part-size", "20K"]
    for path in sorted(archives.iterdir()):
        web.put(f"/{path.name}", path)
        words += ["--url", web.url(f"/{path.name}")]
    return tuple(words)


def _apart(*prefix: str) -> Iterator[Shop]:
    """A shop in namespaces of its own, where this user may make some."""
    made = subprocess.run([*prefix, "true"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"{' '.join(prefix)}: {made.stderr.strip()}")
    with Shop(*prefix) as running:
        yield running


@pytest.fixture(scope="session")
def mounting() -> Iterator[Shop]:
    """A shop with mounts of its own: `do("mount", …)`; needs root."""
    yield from _apart("unshare", "--mount", "--propagation", "private")


@pytest.fixture(scope="session")
def offline() -> Iterator[Shop]:
    """A shop without any network; needs root."""
    yield from _apart("unshare", "--net")
