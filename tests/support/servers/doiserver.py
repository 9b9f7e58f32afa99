"""doi.org, Zenodo, another InvenioRDM, Figshare and a Dataverse, each an origin of one server.

The shapes of the answers are those of the real APIs as their clients and documents show them.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tests.support.servers.webserver import WebServer
from tests.support.servers.wire import Answer, Request, file_answer


class DoiServer(WebServer):
    """What `publish_…` is given; bytes of Figshare and Dataverse come from a signed store."""

    key = "theTokenOfTheTestRepository"
    invenio_token = f"Bearer {key}"

    def __init__(self) -> None:
        self._landing: dict[str, str] = {}  # page by DOI
        self._answers: dict[tuple[str, str], Any] = {}  # JSON by origin and path
        self._pages: dict[tuple[str, str], list[Any]] = {}  # lists that are given in pages
        self._moved: dict[tuple[str, str], str] = {}
        self._bytes: dict[tuple[str, str], bytes] = {}
        self._sent_on: set[tuple[str, str]] = set()  # bytes that come by a redirect
        self._locked: set[tuple[str, str]] = set()  # paths that need the token
        self._ids = itertools.count(100)
        self.most_on_page = 1000  # files, whatever is asked for
        super().__init__(("doi", "zenodo", "invenio", "figshare", "download", "dataverse", "store"))
        self.env = {"DOI_RESOLVER": self.url(), "FIGSHARE_API": self.url(origin="figshare")}

    # What tests publish -------------------------------------------------------------------

    def register(self, doi: str, page: str) -> None:
        self._landing[doi] = page

    def publish_zenodo(
        self, number: int, files: Mapping[str, bytes], *, concept: int, restricted: bool = False
    ) -> str:
        """A version whose concept's DOI means it from now on; its own DOI."""
        site = self.url(origin="zenodo")
        doi, of_all = f"10.5281/zenodo.{number}", f"10.5281/zenodo.{concept}"
        listed = []
        for name, data in files.items():
            path = f"/api/records/{number}/files/{name}/content"
            self._bytes["zenodo", path] = data
            if restricted:
                self._locked.add(("zenodo", path))
            listed.append(
                {
                    "id": f"{next(self._ids)}",
                    "key": name,
                    "size": len(data),
                    "checksum": f"md5:{_hex('md5', data)}",
                    "links": {"self": self.url(path, "zenodo")},
                }
            )
        self._answers["zenodo", f"/api/records/{number}"] = {
            "id": number,
            "recid": f"{number}",
            "conceptrecid": f"{concept}",
            "doi": doi,
            "conceptdoi": of_all,
            "metadata": {
                "title": "Pages",
                "access_right": "restricted" if restricted else "open",
                "license": {"id": "cc-by-4.0"},
            },
            "files": listed,
            "links": {"self_html": f"{site}/records/{number}"},
        }
        if restricted:
            self._answers["zenodo", f"/api/records/{number}"]["hidden"] = True
        self._moved["zenodo", f"/api/records/{concept}"] = f"{site}/api/records/{number}"
        self._moved["zenodo", f"/doi/{of_all}"] = f"{site}/records/{number}"
        self.register(doi, f"{site}/record/{number}")
        self.register(of_all, f"{site}/doi/{of_all}")
        return doi

    def publish_invenio(
        self, record: str, doi: str, files: Mapping[str, bytes], *, restricted: bool = False
    ) -> None:
        """A record of another InvenioRDM, which lists its files apart."""
        entries = []
        for name, data in files.items():
            path = f"/api/records/{record}/files/{name}"
            self._bytes["invenio", f"{path}/content"] = data
            links = {"self": path, "content": f"{path}/content"}
            entries.append(
                {
                    "key": name,
                    "size": len(data),
                    "checksum": f"md5:{_hex('md5', data)}",
                    "links": {kind: self.url(to, "invenio") for kind, to in links.items()},
                }
            )
        self._answers["invenio", f"/api/records/{record}"] = {
            "id": record,
            "pids": {"doi": {"identifier": doi, "provider": "datacite"}},
            "metadata": {"title": "Pages", "rights": [{"id": "cc0-1.0"}]},
            "access": {"record": "public", "files": "restricted" if restricted else "public"},
            "files": {"enabled": True, "count": len(files)},
        }
        self._answers["invenio", f"/api/records/{record}/files"] = {"entries": entries}
        if restricted:
            self._locked.add(("invenio", f"/api/records/{record}/files"))
        self.register(doi, f"{self.url(origin='invenio')}/records/{record}")

    def publish_figshare(
        self, article: int, versions: Sequence[Sequence[tuple[str, bytes]]], **more: Any
    ) -> str:
        """An article with all its versions; the DOI without a version. ``more``: further fields."""
        doi = f"10.6084/m9.figshare.{article}"
        page = f"{self.url(origin='download')}/articles/dataset/Pages/{article}"
        self.register(doi, page)
        for number, files in enumerate(versions, 1):
            listed = []
            for name, data in files:
                place = next(self._ids)
                self._bytes["download", f"/files/{place}"] = data
                self._sent_on.add(("download", f"/files/{place}"))
                listed.append(
                    {
                        "id": place,
                        "name": name,
                        "size": len(data),
                        "is_link_only": False,
                        "download_url": self.url(f"/files/{place}", "download"),
                        "supplied_md5": "",
                        "computed_md5": _hex("md5", data),
                    }
                )
            reported = {
                "id": article,
                "version": number,
                "doi": f"{doi}.v{number}",
                "figshare_url": f"{page}/{number}",
                "license": {"value": 1, "name": "CC BY 4.0"},
                "files": listed[:10],
                **more,
            }
            self._answers["figshare", f"/v2/articles/{article}"] = reported
            self._answers["figshare", f"/v2/articles/{article}/versions/{number}"] = reported
            self._pages["figshare", f"/v2/articles/{article}/versions/{number}/files"] = listed
            self.register(f"{doi}.v{number}", f"{page}/{number}")
        return doi

    def publish_dataverse(
        self,
        suffix: str,
        versions: Sequence[Mapping[str, bytes]],
        *,
        restricted: Sequence[str] = (),
        algorithm: str = "MD5",
        tables: Sequence[str] = (),
        embargo: str | None = None,
    ) -> str:
        """A dataset with all its versions, 1.0 and up; its DOI.

        `tables` were converted: the file as it was deposited comes with ?format=original.
        """
        doi = f"10.7910/DVN/{suffix}"
        for number, files in enumerate(versions, 1):
            listed = []
            for name, data in files.items():
                place = next(self._ids)
                path = f"/api/access/datafile/{place}"
                self._bytes["dataverse", path] = data
                self._sent_on.add(("dataverse", path))
                folder, _, last = name.rpartition("/")
                hashed = _hex(algorithm.replace("-", "").lower(), data)
                file: dict[str, Any] = {
                    "id": place,
                    "persistentId": "",
                    "filename": f"1876-{place}",
                    "filesize": len(data),
                    "checksum": {"type": algorithm, "value": hashed},
                }
                if embargo:
                    file["embargo"] = {"dateAvailable": embargo}
                label = last
                if name in tables:
                    label = f"{last.rpartition('.')[0]}.tab"
                    file |= {
                        "filesize": 7,
                        "originalFileFormat": "text/csv",
                        "originalFileName": last,
                        "originalFileSize": len(data),
                    }
                if name in restricted or embargo:
                    self._locked.add(("dataverse", path))
                listed.append(
                    {
                        "label": label,
                        "restricted": name in restricted,
                        "dataFile": file,
                        **({"directoryLabel": folder} if folder else {}),
                    }
                )
            answer = {
                "status": "OK",
                "data": {
                    "versionNumber": number,
                    "versionMinorNumber": 0,
                    "versionState": "RELEASED",
                    "license": {"name": "CC0 1.0", "uri": "http://creativecommons.org"},
                    "files": listed,
                },
            }
            for name in (f"{number}.0", ":latest-published"):
                path = f"/api/datasets/:persistentId/versions/{name}?persistentId=doi:{doi}"
                self._answers["dataverse", path] = answer
        self.register(doi, f"{self.url(origin='dataverse')}/citation?persistentId=doi:{doi}")
        return doi

    def answer(self, origin: str, path: str) -> dict[str, Any]:
        """The JSON of a published record, which may be changed; empty if there is none yet."""
        found: dict[str, Any] = self._answers.setdefault((origin, path), {})
        return found

    def serve(self, origin: str, path: str, data: bytes) -> None:
        self._bytes[origin, path] = data

    # What it answers ----------------------------------------------------------------------

    def respond(self, request: Request) -> Answer:
        place = (request.origin, request.path)
        if request.origin == "doi":
            return self._handle(request.path.removeprefix("/api/handles/"))
        if "persistentId" in request.query:
            place = (request.origin, f"{request.path}?persistentId={request.query['persistentId']}")
        if request.origin == "store":
            signed = self.signature_ok(request)
            _, origin, path = request.path.split("/", 2)
            return file_answer(self._bytes[origin, f"/{path}"]) if signed else Answer(403, b"")
        if place in self._moved:
            return Answer(302, b"", {"Location": self._moved[place]})
        if place in self._locked and not self._logged_in(request):
            return Answer(403, b'{"status": "ERROR", "message": "no access"}')
        if place in self._pages:
            size, page = int(request.query["page_size"]), int(request.query["page"])
            size = min(size, self.most_on_page)
            return _json(self._pages[place][(page - 1) * size : page * size])
        if place in self._answers:
            answer = self._answers[place]
            if isinstance(answer, dict) and answer.get("hidden") and not self._logged_in(request):
                return _json({**answer, "files": []})
            return _json(answer)
        if place in self._sent_on:
            where = self.signed_url(f"/{request.origin}{request.path}", "store")
            return Answer(303, b"", {"Location": where})
        if place in self._bytes:
            return file_answer(self._bytes[place])
        html = {"Content-Type": "text/html"}
        known = any(self.url(request.path, request.origin) in at for at in self._landing.values())
        return Answer(200 if known or "/records/" in request.path else 404, b"<html>", html)

    def _handle(self, doi: str) -> Answer:
        if doi not in self._landing:
            return _json({"responseCode": 100, "handle": doi}, 404)
        data = {"format": "string", "value": self._landing[doi]}
        values = [{"index": 1, "type": "URL", "data": data, "ttl": 86400}]
        return _json({"responseCode": 1, "handle": doi, "values": values})

    def _logged_in(self, request: Request) -> bool:
        sent = request.headers
        return (
            sent.get("authorization") == self.invenio_token
            or sent.get("x-dataverse-key") == self.key
        )


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


def _hex(algorithm: str, data: bytes) -> str:
    return hashlib.new(algorithm, data, usedforsecurity=False).hexdigest()
