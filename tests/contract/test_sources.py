"""What every source promises, held against the Hub, URLs, DOIs, object stores and folders."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec
import pytest

from jobs.errors import Cause, SourceError
from jobs.model import Options, Shard, ShardKind, SourceKind, SourceRef
from jobs.runtime.progress import Progress
from jobs.sources.base import LocalFiles, RemoteSource, Source, SourceRequest, key_of
from jobs.sources.registry import open_source, reopen
from jobs.storage import atomic
from jobs.storage import digest as digests
from jobs.transfer.transfer import Transfer
from tests.support.servers import faults
from tests.support.servers.azureserver import AzureServer
from tests.support.servers.doiserver import DoiServer
from tests.support.servers.gcsserver import GcsServer
from tests.support.servers.hubserver import HubServer
from tests.support.servers.origins import (
    REPO,
    DoiOrigins,
    HubOrigins,
    Mirror,
    Origins,
    StoreOrigins,
    UrlOrigins,
)
from tests.support.servers.s3server import S3Server

# Beginnings that are archives' own, and bodies that are long enough to be cut.
FILES = {
    "pages-2.tar.gz": b"\x1f\x8b\x08\x00" + b"2" * 300_000,
    "pages-10.tar.gz": b"\x1f\x8b\x08\x00" + b"X" * 200_000,
    "pages.zip": b"PK\x03\x04" + b"Z" * 100_000,
}
ORDER = ["pages-2.tar.gz", "pages-10.tar.gz", "pages.zip"]


@dataclass(frozen=True)
class Offer:
    """The files at a source: how to ask for them, and what must stay hidden."""

    request: SourceRequest
    missing: SourceRequest  # something near that is not there
    options: Options = field(default_factory=Options)
    origins: Origins | None = None  # None: nothing travels

    @property
    def secrets(self) -> tuple[str, ...]:
        return self.origins.secrets if self.origins else ()


class SourceContract:
    """Subclassed once for each kind of source."""

    @pytest.fixture
    def offer(self) -> Offer:
        raise AssertionError("every kind gives its own")

    @pytest.fixture
    def source(self, offer: Offer) -> Source:
        return open_source(offer.request)

    def again(self, offer: Offer, source: Source) -> Source:
        """The source as a compute node opens it, from what was written to disk."""
        ref = msgspec.json.decode(atomic.dumps(source.describe()), type=SourceRef)
        return reopen(ref, offer.options, source.private())

    def fetch(self, source: Source, shard: Shard, out: Path) -> bytes:
        """A shard's only file, wherever it comes from."""
        file = shard.files[0]
        if isinstance(source, LocalFiles):
            return Path(file.locator).read_bytes()
        assert isinstance(source, RemoteSource)
        transfer = Transfer(2, stall_s=5, progress=Progress(), backoff_s=0.01, tries=3)
        received = source.fetch(file, key_of(shard.id, 0), transfer, out)
        data = out.read_bytes()
        assert received.size == len(data)
        assert received.sha256.hex == hashlib.sha256(data).hexdigest()
        return data

    def test_the_archives_are_listed_in_natural_order(self, source: Source) -> None:
        shards = source.shards()
        assert [shard.name for shard in shards] == ORDER
        assert {shard.kind for shard in shards} == {ShardKind.ARCHIVE}
        assert [shard.size for shard in shards] == [len(FILES[name]) for name in ORDER]
        assert {shard.parts for shard in shards} == {1}

    def test_ids_are_file_names_in_that_order(self, source: Source) -> None:
        ids = [shard.id for shard in source.shards()]
        assert ids == sorted(set(ids))
        assert all(each == Path(each).name and each.isascii() for each in ids)

    def test_the_listing_is_the_same_every_time(self, offer: Offer, source: Source) -> None:
        other = open_source(offer.request)
        assert other.shards() == source.shards() == source.shards()
        assert other.describe() == source.describe()
        assert other.notes() == source.notes()

    def test_published_digests_are_those_of_the_bytes(self, source: Source) -> None:
        for shard in source.shards():
            digest = shard.files[0].digest
            assert digest is not None
            hasher = digests.new(digest.algorithm)
            hasher.update(FILES[shard.name])
            assert digest.hex == hasher.hexdigest()

    def test_a_compute_node_gets_the_bytes(
        self, offer: Offer, source: Source, tmp_path: Path
    ) -> None:
        there = self.again(offer, source)
        for shard in source.shards():
            out = tmp_path / shard.id
            for _ in range(2):  # doing it twice does no harm
                assert self.fetch(there, shard, out) == FILES[shard.name]

    def test_what_was_interrupted_continues(
        self, offer: Offer, source: Source, tmp_path: Path
    ) -> None:
        shard = source.shards()[0]
        there = self.again(offer, source)
        if offer.origins is None:
            assert isinstance(there, LocalFiles)  # nothing to interrupt
            return
        offer.origins.forget_requests()
        offer.origins.fail(faults.cut_after(200_000), faults.status(404, None))
        with pytest.raises(SourceError):
            self.fetch(there, shard, tmp_path / "out")
        offer.origins.server.faults.clear()
        assert self.fetch(there, shard, tmp_path / "out") == FILES[shard.name]
        assert offer.origins.sent() < len(FILES[shard.name]) + 1000

    def test_secrets_are_in_private_and_nowhere_else(
        self, offer: Offer, source: Source, tmp_path: Path
    ) -> None:
        shards: Sequence[Shard] = source.shards()
        reported = pickle.dumps((source.describe(), tuple(shards), source.notes()))
        reported += atomic.dumps(source.describe()) + atomic.dumps(tuple(shards))
        assert [each for each in offer.secrets if each.encode() in reported] == []
        keys = {key_of(shard.id, 0) for shard in shards}
        assert set(source.private()) <= keys
        if offer.origins is not None:
            there = self.again(offer, source)
            self.fetch(there, shards[0], tmp_path / "out")
            offer.origins.assert_quiet(tmp_path)

    def test_globs_choose_and_one_that_matches_nothing_is_noted(self, offer: Offer) -> None:
        request = replace(offer.request, include=("*.tar.gz", "*.cvs"), exclude=("*-10*",))
        source = open_source(request)
        assert [shard.name for shard in source.shards()] == ["pages-2.tar.gz"]
        assert any("--include '*.cvs' matches no file" in note for note in source.notes())

    def test_what_is_not_there_is_one_clear_error(self, offer: Offer) -> None:
        with pytest.raises(SourceError) as refused:
            open_source(offer.missing).shards()
        assert refused.value.cause is Cause.NOT_FOUND
        assert "\n" not in refused.value.message
        assert not [each for each in offer.secrets if each in refused.value.message]
        self.check_hint(refused.value.message)

    def check_hint(self, message: str) -> None:
        """A name similar to the missing one is suggested if the source can know it."""
        assert "did you mean" in message


class TestHub(SourceContract):
    @pytest.fixture
    def offer(self, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Offer:
        origins = HubOrigins(hub)
        for name, value in origins.env.items():
            monkeypatch.setenv(name, value)
        hub.add_repo(REPO, dict(FILES), private=True)
        request = SourceRequest(SourceKind.HUB, (f"hf://datasets/{REPO}@main",))
        missing = replace(request, files=("pages-3.tar.gz",))
        return Offer(request, missing, origins=origins)


class TestUrl(SourceContract):
    @pytest.fixture
    def offer(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Offer]:
        with Mirror() as web:
            origins = UrlOrigins(web)
            for name, value in origins.env.items():
                monkeypatch.setenv(name, value)
            made = [origins.put(name, data) for name, data in FILES.items()]
            header = made[0].header_env
            request = SourceRequest(
                SourceKind.URL,
                tuple(each.locators[0] for each in made),
                sha256=tuple(each.sha256[0] for each in made),
                header_env=header,
            )
            missing = SourceRequest(
                SourceKind.URL, (f"{web.url('/pages-3.tar.gz')}?k={web.key}",), header_env=header
            )
            yield Offer(request, missing, Options(header_env=header), origins)

    def check_hint(self, message: str) -> None:
        assert "pages-3.tar.gz" in message
        assert "check the address" in message


class StoreContract(SourceContract):
    """Of each kind of object store; ``serve`` publishes ``FILES`` below ``data/``."""

    def serve(self, folder: Path) -> StoreOrigins:
        raise AssertionError("every store has its own server")

    @pytest.fixture
    def offer(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Offer]:
        origins = self.serve(tmp_path_factory.mktemp("store"))
        with origins.server:
            for name, value in origins.env.items():
                monkeypatch.setenv(name, value)
            for name, data in FILES.items():
                origins.put(f"data/{name}", data)
            request = SourceRequest(SourceKind.STORE, (origins.url("data/"),))
            missing = replace(request, locators=(origins.url("data/pages-3.tar.gz"),))
            yield Offer(request, missing, origins=origins)


class TestS3(StoreContract):
    def serve(self, folder: Path) -> StoreOrigins:
        return StoreOrigins(S3Server(), "s3", "/pages/data/*")


class TestGcs(StoreContract):
    def serve(self, folder: Path) -> StoreOrigins:
        return StoreOrigins(GcsServer(folder), "gs", "/storage/v1/b/pages/o/*")


class TestAzure(StoreContract):
    def serve(self, folder: Path) -> StoreOrigins:
        return StoreOrigins(AzureServer(), "az", f"/{AzureServer.account}/pages/data/*")


class DoiContract(SourceContract):
    """Of each repository; ``publish`` is called once."""

    origin: str
    bytes_from: str  # pattern of paths
    header: tuple[tuple[str, str], ...] = ()

    def publish(self, server: DoiServer) -> str:
        raise AssertionError("every repository has its own way")

    @pytest.fixture
    def offer(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Offer]:
        with DoiServer() as server:
            origins = DoiOrigins(server, self.origin, self.bytes_from)
            for name, value in origins.env.items():
                monkeypatch.setenv(name, value)
            request = SourceRequest(SourceKind.DOI, (self.publish(server),), header_env=self.header)
            missing = replace(request, locators=("10.5281/zenodo.404",))
            yield Offer(request, missing, Options(header_env=self.header), origins)

    def check_hint(self, message: str) -> None:
        assert "10.5281/zenodo.404" in message
        assert "check its spelling" in message

    def test_the_version_is_pinned(self, offer: Offer) -> None:
        ref = open_source(offer.request).describe()
        assert ref.locator == offer.request.locators[0]
        assert ref.revision is not None
        assert ref.license is not None


class TestZenodo(DoiContract):
    origin, bytes_from = "zenodo", "/api/records/*/content"
    header = (("Authorization", "REPOSITORY_TOKEN"),)

    def publish(self, server: DoiServer) -> str:
        server.publish_zenodo(7, FILES, concept=6, restricted=True)
        return "10.5281/zenodo.6"


class TestFigshare(DoiContract):
    origin, bytes_from = "figshare", "/download/files/*"

    def publish(self, server: DoiServer) -> str:
        return server.publish_figshare(8, [[], list(FILES.items())])


class TestDataverse(DoiContract):
    origin, bytes_from = "dataverse", "/dataverse/api/access/datafile/*"
    header = (("X-Dataverse-key", "REPOSITORY_KEY"),)

    def publish(self, server: DoiServer) -> str:
        return server.publish_dataverse("PAGES", [{}, FILES], restricted=list(FILES))


class TestLocal(SourceContract):
    @pytest.fixture
    def offer(self, tmp_path: Path) -> Offer:
        folder = tmp_path / "archives"
        folder.mkdir()
        lines = []
        for name, data in FILES.items():
            (folder / name).write_bytes(data)
            lines.append(f"{hashlib.sha256(data).hexdigest()}  {name}\n")
        (folder / "SHA256SUMS").write_text("".join(lines))
        request = SourceRequest(SourceKind.LOCAL, (str(folder),))
        missing = SourceRequest(SourceKind.LOCAL, (str(tmp_path / "archive"),))
        return Offer(request, missing)
