"""A Hub of our own: speaks enough of the Hugging Face Hub's API for the real huggingface_hub.

Two origins: "hub" answers the API and redirects large files to "cdn", by signed addresses that
expire. Faults of `tests.support.servers.faults` apply to both.
"""

from __future__ import annotations

import base64
import hashlib
import json
import posixpath
import re
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.servers.webserver import WebServer
from tests.support.servers.wire import Answer, Request, file_answer

LFS_SUFFIXES = (".tar", ".gz", ".tgz", ".zip", ".zst", ".bz2", ".xz", ".7z", ".parquet", ".png")
LFS_SIZE = 1 << 20
SIGNED_S = 3600  # how long a signed address is valid
Content = bytes | Path
Json = dict[str, Any]


@dataclass(frozen=True)
class HubFile:
    """A file of a repository, with the digests the Hub keeps of it."""

    content: Content
    size: int
    git_sha1: str  # of the blob: the file, or for LFS its pointer
    sha256: str | None  # of an LFS file

    @classmethod
    def of(cls, name: str, content: Content) -> HubFile:
        """Hash a file; large and binary ones go to LFS, as a dataset's .gitattributes says."""
        size = content.stat().st_size if isinstance(content, Path) else len(content)
        if size < LFS_SIZE and not name.endswith(LFS_SUFFIXES):
            data = content.read_bytes() if isinstance(content, Path) else content
            return cls(content, size, _git_sha1(data), None)
        sha256 = _sha256(content)
        return cls(content, size, _git_sha1(_pointer(sha256, size)), sha256)

    def item(self, path: str) -> Json:
        """The file as the tree lists it."""
        item: Json = {"type": "file", "oid": self.git_sha1, "size": self.size, "path": path}
        if self.sha256:
            pointer = len(_pointer(self.sha256, self.size))
            item["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": pointer}
        return item


@dataclass
class Repo:
    """A repository and its commits."""

    repo_type: str
    repo_id: str
    private: bool
    gated: bool
    license: str | None
    commits: dict[str, dict[str, HubFile]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)  # branch or tag → commit
    granted: bool = False

    def commit(self, files: Mapping[str, HubFile]) -> str:
        """Add a commit to main; returns its id."""
        text = repr(sorted((name, f.git_sha1) for name, f in files.items()))
        sha = hashlib.sha1(f"{self.repo_id} {len(self.commits)} {text}".encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.refs["main"] = sha
        return sha


class HubError(Exception):
    """An answer of the Hub that says no."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        body = json.dumps({"error": message}).encode()
        headers = {"X-Error-Message": message, "Content-Type": "application/json"}
        self.answer = Answer(status, body, headers | ({"X-Error-Code": code} if code else {}))


class HubServer(WebServer):
    """The Hub on the loopback address; use it as a context manager."""

    def __init__(self, *, page_size: int = 1000) -> None:
        self.page_size = page_size  # of the tree
        self.token = "hf_" + "ownerTokenOfTheTestHub" * 2
        """May read private repositories."""
        self.stranger_token = "hf_" + "strangersTokenOfTheHub" * 2
        """Valid, but may read public repositories only."""
        self._repos: dict[tuple[str, str], Repo] = {}
        self._lfs: dict[str, Content] = {}
        super().__init__(("hub", "cdn"))

    # What tests use ----------------------------------------------------------------------

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT, or `endpoint=` of the client, must be."""
        return self.url()

    @property
    def env(self) -> dict[str, str]:
        """What a process needs in its environment to take this for the Hub; without a token."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_XET": "1",
        }

    def add_repo(
        self,
        repo_id: str,
        files: Mapping[str, Content],
        *,
        repo_type: str = "dataset",
        private: bool = False,
        gated: bool = False,
        license: str | None = None,
    ) -> str:
        """Make a repository; returns the id of its first commit."""
        repo = Repo(repo_type, repo_id, private, gated, license)
        self._repos[repo_type, repo_id] = repo
        return repo.commit(self._files(files))

    def update(self, repo_id: str, files: Mapping[str, Content | None]) -> str:
        """Add, change or (None) remove files in a new commit on main; returns its id."""
        repo = self._repos["dataset", repo_id]
        new = dict(repo.commits[repo.refs["main"]])
        for name in [name for name, content in files.items() if content is None]:
            del new[name]
        new |= self._files({n: c for n, c in files.items() if c is not None})
        return repo.commit(new)

    def tag(self, repo_id: str, name: str) -> None:
        """Name the last commit."""
        refs = self._repos["dataset", repo_id].refs
        refs[name] = refs["main"]

    def grant(self, repo_id: str) -> None:
        """Let the owner's token into a gated repository."""
        self._repos["dataset", repo_id].granted = True

    def _files(self, files: Mapping[str, Content]) -> dict[str, HubFile]:
        made = {name: HubFile.of(name, content) for name, content in files.items()}
        self._lfs.update({f.sha256: f.content for f in made.values() if f.sha256})
        return made

    # Answers -----------------------------------------------------------------------------

    def respond(self, request: Request) -> Answer:
        """Answer as the Hub or as its CDN."""
        try:
            return self._cdn(request) if request.origin == "cdn" else self._hub(request)
        except HubError as error:
            return error.answer

    def _cdn(self, request: Request) -> Answer:
        if "authorization" in request.headers:
            # S3 refuses two ways to authenticate; so a token that leaks is seen.
            return _denied(400, "InvalidArgument")
        if not self.signature_ok(request):
            return _denied(403, "AccessDenied")
        _, _, oid, name = request.path.split("/", 3)
        headers = {"ETag": f'"{oid}"', "Content-Disposition": f'inline; filename="{name}"'}
        return file_answer(self._lfs[oid], headers)

    def _hub(self, request: Request) -> Answer:
        raw = request.target.partition("?")[0]  # %2F within a revision is not a separator
        if raw == "/api/whoami-v2":
            return self._whoami(request)
        routes: list[tuple[str, Callable[[Request, Repo, str, str], Answer]]] = [
            (rf"/api/{TYPES}/{ID}/tree/{REV}{PATH}", self._tree),
            (rf"/api/{TYPES}/{ID}/paths-info/{REV}", self._paths_info),
            (rf"/api/{TYPES}/{ID}/refs", self._refs),
            (rf"/api/resolve-cache/{TYPES}/{ID}/{REV}{PATH}", self._cached),
            (rf"/api/{TYPES}/{ID}(?:/revision/{REV})?", self._info),
            (rf"/(?:(?P<type>datasets|spaces)/)?{ID}/resolve/{REV}{PATH}", self._resolve),
        ]
        for pattern, answer in routes:
            if match := re.fullmatch(pattern, raw):
                named = {k: urllib.parse.unquote(v or "") for k, v in match.groupdict().items()}
                repo = self._open(request, named["type"] or "models", named["id"])
                revision = named.get("rev") or "main"
                return answer(request, repo, revision, named.get("path", "").strip("/"))
        return HubError(404, "", "Sorry, we can't find the page you are looking for.").answer

    def _whoami(self, request: Request) -> Answer:
        if not self._token_of(request):
            raise HubError(401, "", "Invalid username or password.")
        access = {"displayName": "test", "role": "read"}
        return _json({"type": "user", "name": "owner", "auth": {"accessToken": access}})

    def _info(self, request: Request, repo: Repo, revision: str, path: str) -> Answer:
        sha, files = _at(repo, revision)
        blobs = request.query.get("blobs", "").lower() in ("true", "1")
        license = {"license": repo.license} if repo.license else {}
        return _json(
            {
                "id": repo.repo_id,
                "author": repo.repo_id.partition("/")[0],
                "sha": sha,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "disabled": False,
                "lastModified": "2024-06-01T12:00:00.000Z",
                "createdAt": "2024-05-01T12:00:00.000Z",
                "tags": [f"license:{repo.license}"] if repo.license else [],
                "cardData": license,
                "siblings": [_sibling(name, files[name], blobs) for name in sorted(files)],
            }
        )

    def _refs(self, request: Request, repo: Repo, revision: str, path: str) -> Answer:
        tags = [name for name in repo.refs if name != "main"]
        return _json(
            {
                "branches": [_ref("refs/heads/", repo, "main")],
                "tags": [_ref("refs/tags/", repo, name) for name in tags],
                "converts": [],
            }
        )

    def _tree(self, request: Request, repo: Repo, revision: str, path: str) -> Answer:
        _, files = _at(repo, revision)
        recursive = request.query.get("recursive", "").lower() in ("true", "1")
        items = list(_list(files, path, recursive))
        if path and not items:
            raise HubError(404, "EntryNotFound", f"{path} does not exist on {revision!r}")
        start = int(base64.urlsafe_b64decode(request.query.get("cursor", "")) or 0)
        size = min(self.page_size, int(request.query.get("limit", self.page_size)))
        answer = _json(items[start : start + size])
        if start + size < len(items):
            cursor = base64.urlsafe_b64encode(b"%d" % (start + size)).decode()
            query = urllib.parse.urlencode({**request.query, "cursor": cursor})
            there = self.endpoint + request.target.partition("?")[0]
            answer.headers["Link"] = f'<{there}?{query}>; rel="next"'
        return answer

    def _paths_info(self, request: Request, repo: Repo, revision: str, path: str) -> Answer:
        if request.headers.get("content-type", "").startswith("application/json"):
            wanted = json.loads(request.body)["paths"]
        else:
            wanted = urllib.parse.parse_qs(request.body.decode()).get("paths", [])
        _, files = _at(repo, revision)
        folders = {item["path"]: item for item in _list(files, "", True) if "lfs" not in item}
        known = {**folders, **{name: f.item(name) for name, f in files.items()}}
        return _json([known[name] for name in wanted if name in known])

    def _resolve(self, request: Request, repo: Repo, revision: str, path: str) -> Answer:
        if repo.gated and not (repo.granted and self._token_of(request) == self.token):
            status = 403 if self._token_of(request) else 401
            raise HubError(status, "GatedRepo", f"Access to dataset {repo.repo_id} is restricted.")
        sha, files = _at(repo, revision)
        if path not in files:
            raise HubError(404, "EntryNotFound", "Entry not found")
        file = files[path]
        headers = {"X-Repo-Commit": sha, "X-Linked-Size": str(file.size)}
        headers["X-Linked-ETag"] = f'"{file.sha256 or file.git_sha1}"'
        if file.sha256:
            where = f"/lfs/{file.sha256}/{posixpath.basename(path)}"
            headers["Location"] = self.signed_url(where, "cdn", SIGNED_S)
            return Answer(302, b"Found. Redirecting", headers)
        kind, name = f"{repo.repo_type}s", urllib.parse.quote(path)
        headers["Location"] = f"/api/resolve-cache/{kind}/{repo.repo_id}/{sha}/{name}"
        return Answer(307, b"Temporary Redirect. Redirecting", headers)

    def _cached(self, request: Request, repo: Repo, revision: str, path: str) -> Answer:
        sha, files = _at(repo, revision)
        file = files[path]
        return file_answer(file.content, {"ETag": f'"{file.git_sha1}"', "X-Repo-Commit": sha})

    # Who may ------------------------------------------------------------------------------

    def _token_of(self, request: Request) -> str | None:
        value = request.headers.get("authorization")
        if value is None:
            return None
        token = value.removeprefix("Bearer ")
        if token not in (self.token, self.stranger_token):
            raise HubError(401, "", "Invalid credentials in Authorization header")
        return token

    def _open(self, request: Request, kind: str, repo_id: str) -> Repo:
        token = self._token_of(request)
        repo = self._repos.get((kind.removesuffix("s"), repo_id))
        if repo is None or (repo.private and token != self.token):
            # The Hub does not reveal whether a repository exists to users without access.
            raise HubError(404 if token else 401, "RepoNotFound", "Repository not found")
        return repo


TYPES = r"(?P<type>datasets|models|spaces)"
ID = r"(?P<id>[^/]+/[^/]+|[^/]+)"
REV = r"(?P<rev>[^/]+)"
PATH = r"(?P<path>(?:/.*)?)"


def _at(repo: Repo, revision: str) -> tuple[str, dict[str, HubFile]]:
    sha = repo.refs.get(revision, revision)
    if sha not in repo.commits:
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return sha, repo.commits[sha]


def _list(files: Mapping[str, HubFile], path: str, recursive: bool) -> Iterator[Json]:
    """The items of the tree below a folder: folders before what they hold."""
    prefix = f"{path}/" if path else ""
    seen = set()
    for name in sorted(files):
        if not name.startswith(prefix):
            continue
        parts = name.removeprefix(prefix).split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            folder = prefix + "/".join(parts[:depth])
            if folder not in seen:
                seen.add(folder)
                oid = _git_sha1(folder.encode())
                yield {"type": "directory", "oid": oid, "size": 0, "path": folder}
        if recursive or len(parts) == 1:
            yield files[name].item(name)


def _sibling(name: str, file: HubFile, blobs: bool) -> Json:
    if not blobs:
        return {"rfilename": name}
    item = file.item(name)
    sibling = {"rfilename": name, "blobId": item["oid"], "size": item["size"]}
    if file.sha256:
        lfs = {"sha256": file.sha256, "size": file.size}
        sibling["lfs"] = lfs | {"pointerSize": item["lfs"]["pointerSize"]}
    return sibling


def _ref(prefix: str, repo: Repo, name: str) -> Json:
    return {"name": name, "ref": prefix + name, "targetCommit": repo.refs[name]}


def _json(value: object) -> Answer:
    headers = {"Content-Type": "application/json; charset=utf-8"}
    return Answer(200, json.dumps(value).encode(), headers)


def _denied(status: int, code: str) -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code></Error>'
    return Answer(status, body.encode(), {"Content-Type": "application/xml"})


def _pointer(sha256: str, size: int) -> bytes:
    return (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()
    )


def _git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


def _sha256(content: Content) -> str:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    digest = hashlib.sha256()
    with content.open("rb") as source:
        while block := source.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
