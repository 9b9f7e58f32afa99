"""The Hub of the tests satisfies the real client, and says no as the Hub does."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from huggingface_hub import HfApi, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from tests.support.servers import faults
from tests.support.servers.hubserver import HubServer

SHARD = bytes(range(256)) * 8192  # 2 MiB
FILES: dict[str, bytes] = {
    "README.md": b"# WebSight\n",
    "prompts.jsonl": b'{"id": 0}\n',
    **{f"data/shard-{n:02}.tar.gz": SHARD + bytes([n]) for n in range(5)},
}
ID = "org/websight"


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer(page_size=3) as running:
        running.add_repo(ID, FILES, license="cc-by-4.0")
        running.add_repo("org/private", FILES, private=True)
        running.add_repo("org/gated", FILES, gated=True)
        yield running


@pytest.fixture
def api(hub: HubServer) -> HfApi:
    return HfApi(endpoint=hub.endpoint, token=False)


def test_info_names_commit_licence_and_files(hub: HubServer, api: HfApi) -> None:
    info = api.dataset_info(ID, files_metadata=True, timeout=30)
    assert info.card_data is not None
    assert info.card_data["license"] == "cc-by-4.0"
    assert info.siblings is not None
    assert {s.rfilename: s.size for s in info.siblings} == {n: len(c) for n, c in FILES.items()}
    assert info.sha == api.dataset_info(ID, revision=info.sha).sha


def test_the_tree_comes_in_pages_with_digests(hub: HubServer, api: HfApi) -> None:
    items = list(api.list_repo_tree(ID, recursive=True, repo_type="dataset"))
    files = {item.path: item for item in items if isinstance(item, RepoFile)}
    assert files.keys() == FILES.keys()
    assert [item.path for item in items if not isinstance(item, RepoFile)] == ["data"]
    assert len(hub.asked("/api/datasets/*/tree/*")) == 3
    lfs = files["data/shard-03.tar.gz"].lfs
    assert lfs is not None
    assert lfs.sha256 == hashlib.sha256(SHARD + b"\3").hexdigest()
    readme = subprocess.run(
        ["git", "hash-object", "--stdin"], input=FILES["README.md"], capture_output=True, check=True
    )
    assert files["README.md"].blob_id == readme.stdout.decode().strip()
    top = api.list_repo_tree(ID, repo_type="dataset")
    assert {item.path for item in top} == {"README.md", "prompts.jsonl", "data"}


def test_paths_info_leaves_out_what_is_missing(api: HfApi) -> None:
    wanted = ["README.md", "data", "none", "data/shard-00.tar.gz"]
    found = api.get_paths_info(ID, wanted, repo_type="dataset")
    assert [item.path for item in found] == ["README.md", "data", "data/shard-00.tar.gz"]


@pytest.mark.parametrize("name", ["README.md", "data/shard-01.tar.gz"])
def test_a_file_is_downloaded(hub: HubServer, tmp_path: Path, name: str) -> None:
    path = hf_hub_download(
        ID, name, repo_type="dataset", endpoint=hub.endpoint, local_dir=tmp_path, token=hub.token
    )
    assert Path(path).read_bytes() == FILES[name]
    cdn = [request for request in hub.requests if request.origin == "cdn"]
    assert bool(cdn) == name.endswith(".gz")
    assert all("authorization" not in request.headers for request in cdn)


def test_a_snapshot_is_downloaded(hub: HubServer, tmp_path: Path) -> None:
    snapshot_download(
        ID, repo_type="dataset", endpoint=hub.endpoint, local_dir=tmp_path, token=False
    )
    assert {n: (tmp_path / n).read_bytes() for n in FILES} == FILES


def test_a_commit_stays_what_it_was(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    old = api.dataset_info(ID).sha
    hub.tag(ID, "v1")
    new = hub.update(ID, {"README.md": b"changed", "prompts.jsonl": None})
    assert api.dataset_info(ID).sha == new != old
    assert api.dataset_info(ID, revision="v1").sha == old
    assert not api.file_exists(ID, "prompts.jsonl", repo_type="dataset")
    url = hf_hub_url(ID, "README.md", repo_type="dataset", revision=old, endpoint=hub.endpoint)
    assert requests.get(url).content == FILES["README.md"]
    refs = api.list_repo_refs(ID, repo_type="dataset")
    assert [(tag.name, tag.target_commit) for tag in refs.tags] == [("v1", old)]


@pytest.mark.parametrize("repo_type", ["model", "space"])
def test_other_kinds_of_repository_are_served(
    hub: HubServer, api: HfApi, tmp_path: Path, repo_type: str
) -> None:
    sha = hub.add_repo("org/other", FILES, repo_type=repo_type)
    assert api.repo_info("org/other", repo_type=repo_type).sha == sha
    path = hf_hub_download(
        "org/other",
        "data/shard-00.tar.gz",
        repo_type=repo_type,
        endpoint=hub.endpoint,
        local_dir=tmp_path,
        token=False,
    )
    assert Path(path).read_bytes() == SHARD + b"\0"


def test_a_private_repository_is_for_its_owner(hub: HubServer, api: HfApi) -> None:
    with pytest.raises(RepositoryNotFoundError) as refused:
        api.dataset_info("org/private", token=False)
    assert refused.value.response.status_code == 401
    with pytest.raises(RepositoryNotFoundError) as refused:
        api.dataset_info("org/private", token=hub.stranger_token)
    assert refused.value.response.status_code == 404
    with pytest.raises(HfHubHTTPError) as wrong:
        api.dataset_info("org/private", token="hf_wrong")
    assert wrong.value.response.status_code == 401
    assert api.dataset_info("org/private", token=hub.token).private
    assert api.whoami(hub.token)["name"] == "owner"


def test_a_gated_repository_is_seen_but_not_read(hub: HubServer, tmp_path: Path) -> None:
    def fetch(token: str | bool) -> str:
        return hf_hub_download(
            "org/gated",
            "README.md",
            repo_type="dataset",
            endpoint=hub.endpoint,
            local_dir=tmp_path,
            token=token,
        )

    assert HfApi(endpoint=hub.endpoint, token=False).dataset_info("org/gated").gated == "manual"
    for token in (False, hub.token):
        with pytest.raises(GatedRepoError):
            fetch(token)
    hub.grant("org/gated")
    assert Path(fetch(hub.token)).read_bytes() == FILES["README.md"]


def test_what_does_not_exist_has_its_own_error(hub: HubServer, api: HfApi, tmp_path: Path) -> None:
    with pytest.raises(RepositoryNotFoundError):
        api.dataset_info("org/none")
    with pytest.raises(RevisionNotFoundError):
        api.dataset_info(ID, revision="none")
    with pytest.raises(EntryNotFoundError):
        hf_hub_download(
            ID, "none", repo_type="dataset", endpoint=hub.endpoint, token=False, cache_dir=tmp_path
        )


def test_the_cdn_wants_a_fresh_address_and_no_token(hub: HubServer) -> None:
    url = hf_hub_url(ID, "data/shard-00.tar.gz", repo_type="dataset", endpoint=hub.endpoint)
    there = requests.head(url).headers["Location"]
    part = requests.get(there, headers={"Range": "bytes=1-4"})
    assert (part.status_code, part.content) == (206, SHARD[1:5])
    assert requests.get(there, headers={"Authorization": "Bearer x"}).status_code == 400
    hub.expire_signed_urls()
    assert requests.get(there).status_code == 403
    assert requests.get(requests.head(url).headers["Location"]).status_code == 200


def test_faults_apply_to_both_origins(hub: HubServer, api: HfApi) -> None:
    hub.fail("/api/datasets/*", faults.busy(code=429, retry_after="1"))
    with pytest.raises(HfHubHTTPError) as busy:
        api.dataset_info(ID)
    assert busy.value.response.headers["Retry-After"] == "1"
    hub.fail("/lfs/*", faults.corrupt_byte(0), origin="cdn")
    url = hf_hub_url(ID, "data/shard-00.tar.gz", repo_type="dataset", endpoint=hub.endpoint)
    assert requests.get(url).content == b"\1" + SHARD[1:] + b"\0"
