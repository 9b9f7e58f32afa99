"""DOIs: how people write them, and what each repository's answers become."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.errors import Cause, DigestError, SourceError
from jobs.model import SourceKind
from jobs.runtime.progress import Progress
from jobs.sources import doi_records, http_probe, url_lists
from jobs.sources.base import RemoteSource, SourceRequest, key_of
from jobs.sources.registry import open_source
from jobs.transfer.transfer import Transfer
from tests.support.servers import faults
from tests.support.servers.doiserver import DoiServer

GZ = b"\x1f\x8b\x08" + bytes(2000)
FILES = {"pages.tar.gz": GZ, "README.md": b"# d\n"}


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[DoiServer]:
    with DoiServer() as running:
        for name, value in running.env.items():
            monkeypatch.setenv(name, value)
        yield running


def opened(locator: str, **more: object) -> RemoteSource:
    source = open_source(SourceRequest(SourceKind.DOI, (locator,), **more))  # type: ignore[arg-type]
    assert isinstance(source, RemoteSource)
    return source


def names(source: RemoteSource) -> list[str]:
    return [shard.name for shard in source.shards()]


def refused(locator: str, **more: object) -> SourceError:
    with pytest.raises(SourceError) as error:
        opened(locator, **more).shards()
    assert "\n" not in error.value.message
    return error.value


# How people write them -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "10.5281/zenodo.7",
        " doi:10.5281/zenodo.7 ",
        "DOI: 10.5281/zenodo.7",
        "https://doi.org/10.5281/zenodo.7",
        "http://dx.doi.org/10.5281%2Fzenodo.7/",
        "https://dv.org/dataset.xhtml?persistentId=doi:10.5281/zenodo.7&version=1.0",
    ],
)
def test_a_doi_is_understood_however_it_is_written(text: str) -> None:
    assert doi_records.parse_locator(text) == ("10.5281/zenodo.7", None)


@pytest.mark.parametrize(
    "text",
    ["zenodo.7", "10.5281", "https://zenodo.org/communities/x", "10.5281/a b", "", "https://[x"],
)
def test_what_is_no_doi_is_refused_with_an_example(text: str) -> None:
    error = refused(text)
    assert error.cause is Cause.USAGE
    assert "10.5281/zenodo.1234567" in error.message


def test_a_doi_that_is_not_registered_is_refused(server: DoiServer) -> None:
    error = refused("10.5281/zenodo.404")
    assert error.cause is Cause.NOT_FOUND
    assert "10.5281/zenodo.404" in error.message


def test_a_doi_of_something_else_is_refused_with_its_page(server: DoiServer) -> None:
    page = server.url("/paper/1", "dataverse")
    server.register("10.1000/paper", page)
    error = refused("10.1000/paper")
    assert error.cause is Cause.UNSUPPORTED
    assert page in error.message
    assert "--url" in error.message


def test_the_page_of_a_record_given_as_a_url_leads_to_the_option(server: DoiServer) -> None:
    server.publish_zenodo(7, FILES, concept=6)
    url = server.url("/records/7", "zenodo")
    assert "--doi" in (url_lists.page_hint(url) or "")
    assert names(opened(url)) == ["pages.tar.gz", "README.md"]
    assert opened(url).describe().locator == "10.5281/zenodo.7"


# Zenodo and InvenioRDM -------------------------------------------------------------------------


def test_the_doi_of_all_versions_means_the_latest_and_pins_it(server: DoiServer) -> None:
    server.publish_zenodo(7, FILES, concept=6)
    before = opened("10.5281/zenodo.6")
    before.shards()
    server.publish_zenodo(9, {"pages-2.tar.gz": GZ}, concept=6)
    assert names(before) == ["pages.tar.gz", "README.md"]
    ref = before.describe()
    assert (ref.locator, ref.revision, ref.license) == (
        "10.5281/zenodo.6",
        "10.5281/zenodo.7",
        "cc-by-4.0",
    )
    assert ref.pinned_name == "10.5281/zenodo.6 @ 10.5281/zenodo.7"
    assert opened("10.5281/zenodo.6").describe().revision == "10.5281/zenodo.9"
    assert opened("10.5281/zenodo.7").describe().pinned_name == "10.5281/zenodo.7"
    digest = before.shards()[0].files[0].digest
    assert str(digest) == f"md5:{hashlib.md5(GZ, usedforsecurity=False).hexdigest()}"


def test_another_inveniordm_lists_its_files_apart(server: DoiServer) -> None:
    server.publish_invenio("ab12c-de345", "10.22002/ab12c-de345", FILES)
    source = opened("10.22002/ab12c-de345")
    assert names(source) == ["pages.tar.gz", "README.md"]
    assert source.shards()[0].files[0].locator.endswith("/files/pages.tar.gz/content")
    assert source.describe().license == "cc0-1.0"
    server.fail(
        "/api/records/ab12c-de345/files", faults.status(200, None, body=b'{"entries": [0]}')
    )
    assert "only 1 of its 2 files" in refused("10.22002/ab12c-de345").message


@pytest.mark.parametrize("form", ["by name", "apart by name", "as in deposits"])
def test_zenodo_may_list_files_in_other_forms(server: DoiServer, form: str, tmp_path: Path) -> None:
    doi = server.publish_zenodo(7, {"pages 1.tar.gz": GZ}, concept=6)
    record = server.answer("zenodo", "/api/records/7")
    by_name = {file["key"]: file for file in record["files"]}
    if form == "as in deposits":
        record["files"] = [
            {
                "id": file["id"],
                "filename": file["key"],
                "filesize": file["size"],
                "checksum": file["checksum"].removeprefix("md5:"),
                "links": {"self": server.url("/nowhere", "zenodo")},
            }
            for file in record["files"]
        ]
    else:
        record["files"] = {"enabled": True, "entries": by_name if form == "by name" else {}}
        server.answer("zenodo", "/api/records/7/files").update(enabled=True, entries=by_name)
    source = opened(doi)
    (shard,) = source.shards()
    assert (shard.name, shard.size) == ("pages 1.tar.gz", len(GZ))
    transfer = Transfer(1, stall_s=5, progress=Progress())
    assert source.fetch(shard.files[0], key_of(shard.id, 0), transfer, tmp_path / "out").verified


def test_a_record_without_files_or_without_a_doi(server: DoiServer) -> None:
    server.publish_invenio("ab12c", "10.22002/ab12c", FILES)
    record = server.answer("invenio", "/api/records/ab12c")
    page = server.url("/records/ab12c", "invenio")
    del record["pids"]
    source = opened(page)
    assert names(source) == ["pages.tar.gz", "README.md"]
    assert source.describe().locator == page
    record["files"] = {"enabled": False}
    server.answer("invenio", "/api/records/ab12c/files").clear()
    assert "has no files" in refused(page).message


def test_files_that_are_not_public_are_one_clear_error(
    server: DoiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    doi = server.publish_zenodo(7, FILES, concept=6, restricted=True)
    server.publish_invenio("ab12c", "10.22002/ab12c", FILES, restricted=True)
    for closed in (doi, "10.22002/ab12c"):
        error = refused(closed)
        assert error.cause is Cause.GATED
        assert "--header" in error.message
    monkeypatch.setenv("TOKEN", "Bearer another")
    error = refused("10.22002/ab12c", header_env=(("Authorization", "TOKEN"),))
    assert error.cause is Cause.AUTHENTICATION
    monkeypatch.setenv("TOKEN", server.invenio_token)
    known = opened("10.22002/ab12c", header_env=(("Authorization", "TOKEN"),))
    assert names(known) == ["pages.tar.gz", "README.md"]


def test_a_version_of_zenodo_is_chosen_by_its_doi(server: DoiServer) -> None:
    doi = server.publish_zenodo(7, FILES, concept=6)
    error = refused(doi, revision="1")
    assert error.cause is Cause.USAGE
    assert "has its own DOI" in error.message


def test_bytes_that_do_not_have_the_md5_of_the_record_are_refused(
    server: DoiServer, tmp_path: Path
) -> None:
    source = opened(server.publish_zenodo(7, {"pages.tar.gz": GZ}, concept=6))
    shard = source.shards()[0]
    server.fail("/api/records/*/content", faults.changed(GZ[:-1] + b"!"))
    transfer = Transfer(1, stall_s=5, progress=Progress(), backoff_s=0.01, tries=3)
    with pytest.raises(DigestError, match="md5"):
        source.fetch(shard.files[0], key_of(shard.id, 0), transfer, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# Figshare --------------------------------------------------------------------------------------


def test_a_doi_of_figshare_means_its_version_or_the_latest(server: DoiServer) -> None:
    doi = server.publish_figshare(8, [[("a.tar.gz", GZ)], [("b.tar.gz", GZ)]])
    assert names(opened(f"{doi}.v1")) == ["a.tar.gz"]
    assert names(opened(doi)) == ["b.tar.gz"]
    assert opened(doi).describe().revision == f"{doi}.v2"
    assert names(opened(doi, revision="1")) == ["a.tar.gz"]
    assert refused(f"{doi}.v1", revision="2").cause is Cause.USAGE
    missing = refused(doi, revision="3")
    assert missing.cause is Cause.NOT_FOUND
    assert "--revision" in missing.message


@pytest.mark.parametrize(("count", "most"), [(11, 1000), (1000, 1000), (1001, 1000), (25, 10)])
def test_every_file_of_figshare_is_taken_though_an_article_lists_ten(
    server: DoiServer, count: int, most: int
) -> None:
    server.most_on_page = most
    files = [(f"{i:04}.txt", b"x") for i in range(count)]
    assert len(opened(server.publish_figshare(8, [files])).shards()) == count


def test_files_of_one_name_at_figshare_are_all_taken(server: DoiServer) -> None:
    doi = server.publish_figshare(8, [[("a.txt", b"1"), ("a.txt", b"2"), ("b.txt", b"3")]])
    found = names(opened(doi))
    assert len(found) == 3
    assert "b.txt" in found
    assert sum(name.endswith("/a.txt") for name in found) == 2


@pytest.mark.parametrize("field", ["is_embargoed", "is_confidential", "download_disabled"])
def test_an_article_that_is_closed_is_one_clear_error(server: DoiServer, field: str) -> None:
    files = [("a.txt", b"1")] if field == "download_disabled" else []
    error = refused(server.publish_figshare(8, [files], **{field: True}))
    assert error.cause is Cause.GATED


def test_a_collection_and_a_private_link_of_figshare_are_refused_with_what_to_do(
    server: DoiServer,
) -> None:
    page = server.url("/collections/Pages/77/1", "download")
    server.register("10.6084/m9.figshare.c.77", page)
    for locator in ("10.6084/m9.figshare.c.77", page):
        error = refused(locator)
        assert error.cause is Cause.UNSUPPORTED
        assert "is a collection" in error.message
    error = refused("https://figshare.com/s/0123456789abcdef")
    assert error.cause is Cause.USAGE
    assert "--url" in error.message
    assert "0123456789abcdef" not in error.message


# Dataverse -------------------------------------------------------------------------------------


def test_a_dataset_of_a_dataverse_keeps_its_folders_and_its_versions(server: DoiServer) -> None:
    doi = server.publish_dataverse("D", [{"old.tar.gz": GZ}, {"images/a.txt": b"a", "b.tar": GZ}])
    source = opened(doi)
    assert names(source) == ["b.tar", "images/a.txt"]
    assert source.describe().revision == "2.0"
    assert names(opened(doi, revision="1.0")) == ["old.tar.gz"]
    assert refused(doi, revision="7.0").cause is Cause.NOT_FOUND


@pytest.mark.parametrize("algorithm", ["MD5", "SHA-1", "SHA-256", "SHA-512"])
def test_each_checksum_that_a_dataverse_may_use_is_known(
    server: DoiServer, algorithm: str, tmp_path: Path
) -> None:
    doi = server.publish_dataverse("D", [{"b.tar.gz": GZ}], algorithm=algorithm)
    source = opened(doi)
    shard = source.shards()[0]
    transfer = Transfer(1, stall_s=5, progress=Progress())
    received = source.fetch(shard.files[0], key_of(shard.id, 0), transfer, tmp_path / "out")
    assert received.verified


def test_a_table_that_was_converted_is_taken_as_it_was_deposited(server: DoiServer) -> None:
    doi = server.publish_dataverse("D", [{"t/a.csv": b"a,b\n1,2\n"}], tables=("t/a.csv",))
    (shard,) = opened(doi).shards()
    assert (shard.name, shard.size) == ("t/a.csv", 8)
    assert shard.files[0].locator.endswith("?format=original")


@pytest.mark.parametrize("how", ["restricted", "embargo"])
def test_files_that_are_closed_need_a_token_or_are_left_out(
    server: DoiServer, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"closed.tar.gz": GZ, "b.tar.gz": GZ}
    if how == "restricted":
        doi = server.publish_dataverse("D", [files], restricted=("closed.tar.gz",))
        assert names(opened(doi, exclude=("closed*",))) == ["b.tar.gz"]
    else:
        doi = server.publish_dataverse("D", [files], embargo="2999-01-01")
    error = refused(doi)
    assert error.cause is Cause.GATED
    assert "closed.tar.gz" in error.message
    monkeypatch.setenv("KEY", server.key)
    known = opened(doi, header_env=(("X-Dataverse-key", "KEY"),))
    assert sorted(names(known)) == ["b.tar.gz", "closed.tar.gz"]


def test_a_file_whose_retention_period_is_over_is_closed(server: DoiServer) -> None:
    doi = server.publish_dataverse("D", [{"a.tar.gz": GZ, "b.tar.gz": GZ}])
    path = f"/api/datasets/:persistentId/versions/:latest-published?persistentId=doi:{doi}"
    first, second = server.answer("dataverse", path)["data"]["files"]
    first["dataFile"]["retention"] = {"dateUnavailable": "2001-01-01"}
    second["dataFile"]["retention"] = {"dateUnavailable": "2999-01-01"}
    error = refused(doi)
    assert error.cause is Cause.GATED
    assert "a.tar.gz" in error.message
    assert names(opened(doi, exclude=("a.*",))) == ["b.tar.gz"]


def test_a_converted_table_and_a_file_with_its_first_name_are_both_taken(
    server: DoiServer,
) -> None:
    doi = server.publish_dataverse("D", [{"a.csv": b"a,b\n1,2\n"}], tables=("a.csv",))
    path = f"/api/datasets/:persistentId/versions/:latest-published?persistentId=doi:{doi}"
    files = server.answer("dataverse", path)["data"]["files"]
    data = {**files[0]["dataFile"], "id": 999, "originalFileFormat": None}
    files.append({**files[0], "label": "a.csv", "dataFile": data})
    server.serve("dataverse", "/api/access/datafile/999", b"other")
    assert sorted(names(opened(doi))) == [f"{files[0]['dataFile']['id']}/a.csv", "999/a.csv"]


def test_an_embargo_that_is_over_closes_nothing(server: DoiServer) -> None:
    doi = server.publish_dataverse("D", [{"a.tar.gz": GZ}], embargo="2001-01-01")
    assert refused(doi).cause is Cause.AUTHENTICATION  # as this server still asks for the token


# Answers that nobody wants ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"<html>login</html>", id="a page"),
        pytest.param(b'{"id": 7}', id="without its fields"),
        pytest.param(b"[]", id="a list"),
        pytest.param(b'{"id": 7, "doi": "x", "metadata": {}, "files": [{}]}', id="an empty file"),
        pytest.param(b'{"id": 7, "doi": "x", "metadata": [], "files": [3]}', id="other types"),
    ],
)
def test_an_answer_of_another_form_is_one_clear_error(
    server: DoiServer, body: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_probe, "_ATTEMPTS", 1)
    doi = server.publish_zenodo(7, FILES, concept=6)
    server.fail("/api/records/7", faults.status(200, None, body=body))
    assert server.url("/", "zenodo")[:-1] in refused(doi).message


def test_a_repository_that_is_busy_is_asked_again(server: DoiServer) -> None:
    doi = server.publish_zenodo(7, FILES, concept=6)
    busy = faults.busy(code=429, retry_after="0")
    server.fail("/api/records/7", busy, faults.busy(retry_after="0"))
    assert names(opened(doi)) == ["pages.tar.gz", "README.md"]
