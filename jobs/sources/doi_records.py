"""Reads the record of a DOI from a repository's JSON API: a version's files, sizes and digests.

Supports InvenioRDM (Zenodo and others), Figshare and Dataverse:
https://developers.zenodo.org and https://inveniordm.docs.cern.ch/reference/rest_api_drafts_records,
https://docs.figshare.com, https://guides.dataverse.org/en/latest/api/native-api.html.
"""

from __future__ import annotations

import os
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from jobs.errors import Cause, SourceError
from jobs.model import Digest, SourceFile
from jobs.sources import http_probe
from jobs.sources.url_lists import (
    FIGSHARE_PAGE,
    INVENIO_PAGE,
    is_http,
    is_record_page,
    persistent_id,
)
from jobs.storage import digest
from jobs.storage.safe_paths import quoted
from jobs.transfer.target import origin_of, redact

Json = Any  # from a server: `read_record` handles errors of every access
FIGSHARE_API = "https://api.figshare.com"
_RESOLVER = "https://doi.org"
# https://www.doi.org/doi-handbook: a prefix, a slash, and almost any characters.
_DOI = re.compile(r"10\.\d{4,9}(?:\.\d+)*/\S+")
_DOI_SITES = ("doi.org", "dx.doi.org", "www.doi.org")
_FIGSHARE_COLLECTION = re.compile(r"/collections/(?:[^/]+/)*?\d+(?:/\d+)?/?")
_FIGSHARE_PRIVATE = re.compile(r"/s/[^/]+/?")
_FIGSHARE_VERSION = re.compile(r"\.v(\d+)$")
_FIGSHARE_FILES = 1000  # on one page of a response; the default is 10
_ALGORITHMS = {"SHA-1": "sha1", "SHA-256": "sha256", "SHA-512": "sha512", "MD5": "md5"}


@dataclass(frozen=True)
class DoiRecord:
    """One version of a published dataset."""

    doi: str  # as requested; may be that of all versions
    version: str  # pinned: the DOI of this version, or Dataverse's version number
    page: str  # address of its web page
    api: str  # scheme, host and port of the API; only it is sent the user's headers
    files: tuple[SourceFile, ...]
    closed: frozenset[str] = frozenset()  # names of the restricted files
    license: str | None = None


def parse_locator(text: str) -> tuple[str | None, str | None]:
    """The DOI, or else the address of a record's page, in ``text``; ``SourceError`` for neither.

    A DOI may be bare, after ``doi:``, or an address of doi.org or of a Dataverse.
    """
    text = text.strip()
    doi = text.partition(":")[2] if text.lower().startswith("doi:") else text
    if is_http(text):
        parts = urllib.parse.urlsplit(text)
        doi = persistent_id(text) or ""
        if parts.hostname in _DOI_SITES:
            doi = urllib.parse.unquote(parts.path).strip("/")
        elif not doi and (is_record_page(text) or _FIGSHARE_COLLECTION.fullmatch(parts.path)):
            return None, text
        elif not doi and _FIGSHARE_PRIVATE.fullmatch(parts.path):
            raise SourceError(
                "--doi was given a private link of Figshare, whose API does not list its files; "
                "open it, and give the addresses of its download buttons with --url",
                cause=Cause.USAGE,
            )
    doi = doi.strip().strip("/")
    if not _DOI.fullmatch(doi):
        raise SourceError(
            f"--doi {quoted(redact(text))} is not a DOI; write it as 10.5281/zenodo.1234567, or "
            "give its address at doi.org",
            cause=Cause.USAGE,
        )
    return doi, None


def read_record(
    doi: str | None, page: str | None, revision: str | None, headers: Mapping[str, str]
) -> DoiRecord:
    """Read one version of the record with ``doi``, or with the web page ``page``.

    ``revision``: a version number of Figshare or Dataverse; None: the version of the DOI, or the
    latest one if it is the DOI of all versions. ``headers`` are sent to the repository only. Raises
    ``SourceError``.
    """
    page = page or _landing_page(doi or "")
    found = _reader(page)
    if found is None:  # such as /doi/10.5281/…, which redirects to the record
        page = http_probe.final_address(page)
        found = _reader(page)
    if found is None and _FIGSHARE_COLLECTION.fullmatch(urllib.parse.urlsplit(page).path):
        raise SourceError(
            f"{redact(page)} is a collection, whose articles have DOIs of their own; open that "
            "page, and launch once for each article that you need",
            cause=Cause.UNSUPPORTED,
        )
    if found is None:
        raise SourceError(
            f"DOI {quoted(doi or page)} belongs to {redact(page)}, which is not a record of "
            "Zenodo (or another InvenioRDM), Figshare or Dataverse; open that page, and give the "
            "addresses of its files with --url",
            cause=Cause.UNSUPPORTED,
        )
    reader, known = found
    try:
        return reader(known, doi, page, revision, headers)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SourceError(
            f"{redact(page)}: the repository's response does not have the expected form "
            f"({type(error).__name__}); give the addresses of its files with --url"
        ) from error
    except SourceError as error:
        if error.cause is not Cause.NOT_FOUND:
            raise
        what = f"version {quoted(revision)} of it" if revision else "such record (any more)"
        raise SourceError(
            f"{redact(page)}: the repository has no {what}; check the DOI"
            + (" and --revision" if revision else ""),
            cause=Cause.NOT_FOUND,
        ) from None


def _landing_page(doi: str) -> str:
    """The address that a DOI is registered with (https://www.doi.org/doi-handbook, proxy API)."""
    resolver = (os.environ.get("DOI_RESOLVER") or _RESOLVER).rstrip("/")
    try:
        answer = http_probe.fetch_json(
            f"{resolver}/api/handles/{urllib.parse.quote(doi)}?type=URL", {}
        )
        found = [one["data"]["value"] for one in answer["values"] if one["type"] == "URL"]
        origin_of(found[0])
        return str(found[0])
    except SourceError as error:
        if error.cause is not Cause.NOT_FOUND:
            raise
    except (KeyError, TypeError, ValueError, IndexError):
        pass
    raise SourceError(
        f"DOI {quoted(doi)} is not registered at {redact(resolver)}; check its spelling (a DOI "
        "that was only reserved works once its record is published)",
        cause=Cause.NOT_FOUND,
    )


_Reader = Callable[[str, str | None, str, str | None, Mapping[str, str]], DoiRecord]


def _reader(page: str) -> tuple[_Reader, str] | None:
    """The reader of a record's page, and what the repository calls the record."""
    if doi := persistent_id(page):
        return _dataverse, doi
    for pattern, reader in ((FIGSHARE_PAGE, _figshare), (INVENIO_PAGE, _invenio)):
        if match := pattern.fullmatch(urllib.parse.urlsplit(page).path):
            return reader, match[1]
    return None


def _origin(url: str) -> str:
    parts = urllib.parse.urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"


# Zenodo and other InvenioRDM -------------------------------------------------------------------


def _invenio(
    known: str, doi: str | None, page: str, revision: str | None, headers: Mapping[str, str]
) -> DoiRecord:
    """Each version has its own DOI; the DOI of all versions redirects to the latest record."""
    if revision:
        raise SourceError(
            f"--revision {quoted(revision)}: at {_origin(page)} each version has its own DOI; "
            "give that one to --doi, without --revision",
            cause=Cause.USAGE,
        )
    api = _origin(page)
    record = http_probe.fetch_json(f"{api}/api/records/{known}", headers)
    metadata = record["metadata"]
    page = f"{api}/records/{record['id']}"
    registered = (record.get("pids") or {}).get("doi") or {}
    own = record.get("doi") or registered.get("identifier") or page  # not every record has a DOI
    access = metadata.get("access_right") or (record.get("access") or {}).get("files")
    is_closed = access not in (None, "open", "public")
    listed = record.get("files")
    address = f"{api}/api/records/{record['id']}/files"
    if isinstance(listed, dict):  # an InvenioRDM's own form
        count = listed.get("count") or 0
        listed = None if is_closed and not headers else _entries(address, headers)
        if listed and len(listed) < count:
            raise SourceError(
                f"{page}: the repository lists only {len(listed)} of its {count} files; give the "
                "addresses of all of them with --url"
            )
    if not listed:
        raise _no_files(page, is_closed)
    rights = metadata.get("license") or next(iter(metadata.get("rights") or ()), None)
    return DoiRecord(
        doi=doi or own,
        version=own,
        page=page,
        api=api,
        files=tuple(_invenio_file(address, file) for file in listed),
        license=_license(rights),
    )


def _entries(address: str, headers: Mapping[str, str]) -> Json:
    """The files of a record, which lists them by name or not; None if it has none."""
    found = http_probe.fetch_json(address, headers).get("entries")
    return list(found.values()) if isinstance(found, dict) else found


def _invenio_file(address: str, file: Json) -> SourceFile:
    """A file of a record; Zenodo has also listed files in the form of its deposits.

    These have ``filename`` and ``filesize``, an MD5 without its name, and links that lead nowhere.
    """
    algorithm, _, value = (file.get("checksum") or "").rpartition(":")
    known = _digest(algorithm or "md5", value)
    if "key" not in file:
        name = file["filename"]
        content = f"{address}/{urllib.parse.quote(name, safe='')}/content"
        return SourceFile(name, content, file.get("filesize"), known)
    links = file["links"]
    url = redact(links.get("content") or links["self"])
    return SourceFile(file["key"], url, file.get("size"), known)


# Figshare --------------------------------------------------------------------------------------


def _figshare(
    known: str, doi: str | None, page: str, revision: str | None, headers: Mapping[str, str]
) -> DoiRecord:
    """All portals have one API; a version's DOI ends in ``.vN``."""
    meant = _FIGSHARE_VERSION.search(doi or "")
    if meant and revision and revision.removeprefix("v") != meant[1]:
        raise SourceError(
            f"--revision {quoted(revision)} and the version of the DOI, {meant[1]}, differ; give "
            "only one of them",
            cause=Cause.USAGE,
        )
    api = (os.environ.get("FIGSHARE_API") or FIGSHARE_API).rstrip("/")
    article = f"{api}/v2/articles/{known}"
    number = meant[1] if meant else (revision or "").removeprefix("v")
    number = number or str(http_probe.fetch_json(article, headers)["version"])
    version = f"{article}/versions/{urllib.parse.quote(number, safe='')}"
    reply = http_probe.fetch_json(version, headers)
    page = reply.get("figshare_url") or reply.get("url_public_html") or page
    if reply.get("download_disabled"):
        raise _no_files(page, True)
    # The article itself lists at most ten files, without saying that there are more.
    listed = list(_figshare_files(f"{version}/files", headers))
    if not listed:
        raise _no_files(page, bool(reply.get("is_embargoed") or reply.get("is_confidential")))
    elsewhere = [file["name"] for file in listed if file.get("is_link_only")]
    if elsewhere:
        raise SourceError(
            f"{page}: {quoted(elsewhere[0])} is only a link to another site; take the files of "
            "that site with --url",
            cause=Cause.UNSUPPORTED,
        )
    return DoiRecord(
        doi=doi or reply["doi"],
        version=reply["doi"],
        page=page,
        api=_origin(api),
        files=tuple(
            SourceFile(
                file["name"],
                redact(file["download_url"]),
                file["size"],
                _digest("md5", file.get("computed_md5") or file.get("supplied_md5") or ""),
            )
            for file in listed
        ),
        license=_license(reply.get("license")),
    )


def _figshare_files(address: str, headers: Mapping[str, str]) -> Iterator[Json]:
    known: set[int] = set()
    page = 1
    while True:
        found = http_probe.fetch_json(f"{address}?page={page}&page_size={_FIGSHARE_FILES}", headers)
        new = [file for file in found if file["id"] not in known]
        known.update(file["id"] for file in new)
        yield from new
        if not new:  # a server may list fewer on a page than were requested
            return
        page += 1


# Dataverse -------------------------------------------------------------------------------------


def _dataverse(
    known: str, doi: str | None, page: str, revision: str | None, headers: Mapping[str, str]
) -> DoiRecord:
    """A dataset has one DOI, and its versions have numbers."""
    doi = doi or known
    api = _origin(page)
    number = urllib.parse.quote(revision or ":latest-published", safe=":")
    version = http_probe.fetch_json(
        f"{api}/api/datasets/:persistentId/versions/{number}?persistentId=doi:"
        f"{urllib.parse.quote(doi)}",
        headers,
    )["data"]
    page = f"{api}/dataset.xhtml?persistentId=doi:{doi}"
    listed = version.get("files") or ()
    if not listed:
        raise _no_files(page, False)
    files = [_dataverse_file(api, file) for file in listed]
    return DoiRecord(
        doi=doi,
        version=f"{version['versionNumber']}.{version['versionMinorNumber']}",
        page=page,
        api=api,
        files=tuple(files),
        closed=frozenset(
            known.name for known, file in zip(files, listed, strict=True) if _is_closed(file)
        ),
        license=_license(version.get("license")),
    )


def _dataverse_file(api: str, file: Json) -> SourceFile:
    """The original form of a table that Dataverse has converted; the checksum is of this form."""
    data = file["dataFile"]
    name, size = file.get("label") or data["filename"], data.get("filesize")
    url = f"{api}/api/access/datafile/{int(data['id'])}"
    if data.get("originalFileFormat"):
        name, size = data.get("originalFileName") or name, data.get("originalFileSize")
        url += "?format=original"
    folder = (file.get("directoryLabel") or "").strip("/")
    checksum = data.get("checksum") or {"type": "MD5", "value": data.get("md5") or ""}
    algorithm = _ALGORITHMS.get(checksum["type"], "")
    return SourceFile(
        f"{folder}/{name}" if folder else name, url, size, _digest(algorithm, checksum["value"])
    )


def _is_closed(file: Json) -> bool:
    data, today = file["dataFile"], date.today()
    opens = (data.get("embargo") or {}).get("dateAvailable")
    ends = (data.get("retention") or {}).get("dateUnavailable")
    return bool(
        file.get("restricted")
        or (opens and date.fromisoformat(opens) > today)
        or (ends and date.fromisoformat(ends) <= today)
    )


# All -------------------------------------------------------------------------------------------


def _digest(algorithm: str, value: str) -> Digest | None:
    """A digest that the transfer can check; None if the repository has none."""
    fits = len(value) == digest.HEX_LENGTHS.get(algorithm)
    return Digest(algorithm, value.lower()) if fits else None


def _license(reply: Json) -> str | None:
    """The short name of a licence, from a string or an object."""
    if isinstance(reply, dict):
        reply = reply.get("id") or reply.get("name")
    return str(reply) if reply else None


def _no_files(page: str, closed: bool) -> SourceError:
    if not closed:
        return SourceError(f"{page} has no files; check that this is the record of the data")
    return SourceError(
        f"{page}: its files are not public (restricted, or under an embargo); ask for access "
        "there, and give your token with --header, such as Authorization=VARIABLE",
        cause=Cause.GATED,
    )
