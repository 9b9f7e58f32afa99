"""What each source finds at launch, from real files, real HTTP and the real Hub client."""

from __future__ import annotations

import gzip
import hashlib
import os
import threading
from pathlib import Path

import huggingface_hub
import pytest

from jobs.errors import Cause, SourceError
from jobs.model import Digest, Layout, Shard, ShardKind, SourceKind
from jobs.runtime.progress import Progress
from jobs.sources import http_probe, hub, hub_client, url_lists
from jobs.sources.base import LocalFiles, RemoteSource, Source, SourceRequest
from jobs.sources.families import families
from jobs.sources.file_names import natural_key
from jobs.sources.registry import open_source
from jobs.sources.url_lists import expand_braces
from jobs.storage.folder_listing import write_blocks
from jobs.transfer import responses
from jobs.transfer.transfer import Transfer
from tests.support.builders.contents import tarred
from tests.support.servers import faults
from tests.support.servers.faults import Fault
from tests.support.servers.hubserver import HubServer
from tests.support.servers.webserver import FaultyServer

GZ = b"\x1f\x8b\x08" + bytes(2000)
FILES = {
    ".gitattributes": b"*",
    "README.md": b"# d\n",
    "prompts.jsonl": b"{}\n",
    "notes.txt": b"n\n",
    "data/shard-10.tar.gz": GZ + b"10",
    "data/shard-9.tar.gz": GZ + b"9",
}
SHOWN = ["data/shard-9.tar.gz", "data/shard-10.tar.gz", "README.md", "notes.txt", "prompts.jsonl"]


def names(shards: Source) -> list[str]:
    return [shard.name for shard in shards.shards()]


def opened(kind: SourceKind, *locators: object, **more: object) -> Source:
    words = tuple(map(str, locators))
    return open_source(SourceRequest(kind, words, **more))  # type: ignore[arg-type]


@pytest.fixture
def ready(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubServer:
    for name, value in hub.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path / "token"))
    (tmp_path / "token").write_text("\n")
    hub.add_repo("org/d", FILES, license="cc-by-4.0")
    return hub


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """A source is asked again soon, unless it says when."""
    monkeypatch.setattr(responses, "backoff_s", lambda attempt, first_s: 0.01)


# Hub ------------------------------------------------------------------------------------------


def test_the_hub_gives_commit_licence_sizes_and_digests(ready: HubServer) -> None:
    sha = ready.update("org/d", {"LICENSE": b"x"})
    source = opened(SourceKind.HUB, "org/d")
    ref = source.describe()
    assert (ref.revision, ref.license, ref.endpoint) == (sha, "cc-by-4.0", ready.endpoint)
    assert sorted(names(source)) == sorted([*SHOWN, "LICENSE"])
    first = source.shards()[0].files[0]
    assert str(first.digest) == "sha256:" + hashlib.sha256(GZ + b"9").hexdigest()
    assert first.size == len(GZ) + 1
    assert next(s for s in source.shards() if s.name == "README.md").files[0].digest is not None
    assert [shard.id for shard in source.shards()] == sorted(s.id for s in source.shards())


def test_the_hub_is_listed_once(ready: HubServer) -> None:
    source = opened(SourceKind.HUB, "org/d")
    source.shards(), source.describe(), source.shards(), source.notes()
    assert len(ready.asked("/api/datasets/org/d/tree/*")) == 3  # pages


@pytest.mark.parametrize(
    ("locator", "wanted"),
    [
        ("hf://datasets/org/d@main/data/shard-9.tar.gz", ["data/shard-9.tar.gz"]),
        ("hf://datasets/org/d/data", ["data/shard-9.tar.gz", "data/shard-10.tar.gz"]),
    ],
)
def test_an_address_of_the_hub_names_files(
    ready: HubServer, locator: str, wanted: list[str]
) -> None:
    assert names(opened(SourceKind.HUB, locator)) == wanted


def test_locators_are_read() -> None:
    parse = hub.parse_locator
    assert parse("org/d") == hub.Locator("org/d")
    assert parse("hf://org/m@refs/pr/1/x/y") == hub.Locator("org/m", "model", "refs/pr/1", "x/y")
    page = parse("https://huggingface.co/datasets/org/d/tree/main/data")
    assert page == hub.Locator("org/d", "dataset", "main", "data")
    assert parse("https://[x") == hub.Locator("https://[x")


@pytest.mark.parametrize(
    ("request_words", "cause", "words"),
    [
        ({"locators": ("org/none",)}, Cause.NOT_FOUND, "hf auth login"),
        ({"locators": ("org/d",), "revision": "mian"}, Cause.NOT_FOUND, "'main'"),
        ({"locators": ("org/d",), "files": ("shard-9.tar.gz",)}, Cause.NOT_FOUND, "data/shard-9"),
        ({"locators": ("org/gated",)}, Cause.GATED, "/datasets/org/gated"),
        ({"locators": ("org/m",)}, Cause.NOT_FOUND, "--repo-type model"),
        ({"locators": ("hf://buckets/org/b/x.tar",)}, Cause.USAGE, "hf buckets sync"),
        ({"locators": ("https://huggingface.co/buckets/org/b",)}, Cause.USAGE, "hf buckets sync"),
    ],
)
def test_the_hub_s_refusals_say_what_to_do(
    ready: HubServer, request_words: dict[str, object], cause: Cause, words: str
) -> None:
    ready.add_repo("org/gated", FILES, gated=True)
    ready.add_repo("org/m", FILES, repo_type="model")
    with pytest.raises(SourceError) as refused:
        open_source(SourceRequest(SourceKind.HUB, **request_words)).shards()  # type: ignore[arg-type]
    assert refused.value.cause is cause
    assert words in refused.value.message


def test_no_token_is_sent_if_the_user_wants_none_to_be(
    ready: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    monkeypatch.setenv("HF_HUB_DISABLE_IMPLICIT_TOKEN", "1")
    assert names(opened(SourceKind.HUB, "org/d")) == SHOWN
    assert [r for r in ready.asked() if "authorization" in r.headers] == []


def test_a_private_repository_needs_the_users_token(
    ready: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready.add_repo("org/private", FILES, private=True)
    with pytest.raises(SourceError, match="not logged in"):
        opened(SourceKind.HUB, "org/private").shards()
    Path(os.environ["HF_TOKEN_PATH"]).write_text(f"{ready.token}\n")
    assert names(opened(SourceKind.HUB, "org/private")) == SHOWN
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(SourceError) as wrong:
        opened(SourceKind.HUB, "org/private").shards()
    assert wrong.value.cause is Cause.AUTHENTICATION
    assert "hf_wrong" not in wrong.value.message
    assert not [r for r in ready.requests if r.origin == "cdn" and "authorization" in r.headers]


def test_a_busy_hub_is_asked_again(ready: HubServer) -> None:
    ready.fail("/api/datasets/*", faults.busy(2, code=503, retry_after="0"))
    assert names(opened(SourceKind.HUB, "org/d")) == SHOWN


def test_a_web_page_in_place_of_the_hub_s_answer_is_asked_about_again(ready: HubServer) -> None:
    ready.fail("/api/datasets/*", faults.html())
    ready.fail("*shard-9.tar.gz", faults.html(), origin="cdn")
    assert names(opened(SourceKind.HUB, "org/d")) == SHOWN
    assert [len(ready.asked(p)) for p in ("/api/datasets/org/d", "/lfs/*shard-9*")] == [2, 2]


@pytest.mark.parametrize("body", [b'{"error": "busy"}', b'[{"path": "a.tar.gz"}]', b"[1]", b"null"])
@pytest.mark.parametrize("path", ["/api/datasets/org/d", "/api/datasets/org/d/tree/*"])
def test_json_of_another_form_in_place_of_the_hub_s_answer_is_asked_about_again(
    ready: HubServer, path: str, body: bytes
) -> None:
    ready.fail(path, Fault(body=body))
    assert names(opened(SourceKind.HUB, "org/d")) == SHOWN


def test_a_silent_hub_is_not_waited_for(ready: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_client, "TIMEOUT_S", 0.1)
    monkeypatch.setattr(hub_client, "_ATTEMPTS", 1)
    ready.fail("/api/datasets/org/d", faults.stall_after(0, None))
    with pytest.raises(SourceError) as refused:
        opened(SourceKind.HUB, "org/d").shards()
    assert refused.value.cause is Cause.NETWORK


@pytest.mark.parametrize(
    ("content", "fact"), [(None, "cannot be read"), (b"x", "contains no certificate")]
)
def test_a_file_of_certificates_that_the_hub_s_client_cannot_use_is_named(
    ready: HubServer,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    content: bytes | None,
    fact: str,
) -> None:
    path = tmp_path / "site.pem"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    huggingface_hub.close_session()  # the next one reads the file again
    with pytest.raises(
        SourceError, match=f"SSL_CERT_FILE is {str(path)!r}, which {fact}"
    ) as caught:
        opened(SourceKind.HUB, "org/d").shards()
    assert caught.value.cause is Cause.USAGE


def test_offline_is_obeyed(ready: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE"):
        opened(SourceKind.HUB, "org/d").shards()
    assert not ready.requests


# URLs -----------------------------------------------------------------------------------------


def test_urls_give_size_name_and_digest(web: FaultyServer) -> None:
    for n in (8, 9, 10):
        web.put(f"/s/a-{n:02}.tar.gz", GZ + b"%d" % n)
    lines = [f"{hashlib.sha256(GZ + b'8').hexdigest()}  ./a-08.tar.gz"]
    web.put("/s/SHA256SUMS", "\n".join(lines).encode())
    web.put("/s/a-09.tar.gz.sha256", hashlib.sha256(GZ + b"9").hexdigest().encode())
    source = opened(SourceKind.URL, web.url("/s/") + "a-{08..10}.tar.gz")
    files = [shard.files[0] for shard in source.shards()]
    assert [file.name for file in files] == ["a-08.tar.gz", "a-09.tar.gz", "a-10.tar.gz"]
    assert [file.size for file in files] == [2004, 2004, 2005]
    assert [file.digest is not None for file in files] == [True, True, False]
    assert source.private() == {}


@pytest.mark.parametrize(
    ("place", "written", "found"),
    [
        pytest.param("/s/a/SHA256SUMS", "/home/me/out/{}", [True, False], id="other folders"),
        pytest.param("/s/a/SHA256SUMS", "./{}", [True, False], id="own folder"),
        pytest.param("/s/SHA256SUMS", "{folder}/{}", [True, True], id="above"),
        pytest.param("/s/md5sum.txt", "out/{folder}/{}", [False, False], id="another algorithm"),
        pytest.param("/s/SHA256SUMS.txt", "out/{folder}/{}", [True, True], id="above, moved"),
        pytest.param("/s/SHA256SUMS", "{}", [False, False], id="ambiguous"),
        pytest.param("/SHA256SUMS", "s/{folder}/{}", [False, False], id="too far above"),
    ],
)
def test_a_list_of_digests_may_have_folders(
    web: FaultyServer, place: str, written: str, found: list[bool]
) -> None:
    lines = []
    for folder in ("a", "b b"):
        web.put(f"/s/{folder}/1.tar.gz", GZ + folder.encode())
        path = written.replace("{folder}", folder).replace("{}", "1.tar.gz")
        lines.append(f"{hashlib.sha256(GZ + folder.encode()).hexdigest()}  {path}\n")
    in_own = place.startswith("/s/a/")
    web.put(place, "".join(lines[: 1 if in_own else None]).encode())
    source = opened(SourceKind.URL, web.url("/s/a/1.tar.gz"), web.url("/s/b b/1.tar.gz"))
    files = [shard.files[0] for shard in source.shards()]
    assert [file.digest is not None for file in files] == found


@pytest.mark.parametrize(
    ("names", "options", "glob"),
    [
        pytest.param(["c-{}.jsonl.gz"], {}, "'c-*.jsonl.gz'", id="compressed"),
        pytest.param(["x/t-{}-of-2.jsonl"], {}, "'x/t-*-of-*.jsonl'", id="in a folder"),
        pytest.param(["c-{}.jsonl", "prompts.jsonl.gz"], {}, None, id="the list itself is there"),
        pytest.param(["c-{}.jsonl"], {"layout": Layout("files")}, None, id="no records"),
        pytest.param(["c-{}.jsonl"], {"join": ("c-*",)}, None, id="joined"),
        pytest.param(["c-{}.json"], {}, None, id="of one image each"),
    ],
)
def test_a_list_in_several_files_is_noted_with_the_option_that_joins_them(
    tmp_path: Path, names: list[str], options: dict[str, object], glob: str | None
) -> None:
    for name in ["i.tar", *(name.format(n) for name in names for n in range(2))]:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        data = b'{"image": "a.png"}\n'
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    (tmp_path / "i.tar").write_bytes(tarred({"a.png": b""}))
    notes = " ".join(opened(SourceKind.LOCAL, tmp_path, **options).select().notes)
    assert ("2 files may be one list" in notes) == (glob is not None)
    assert f"--join {glob}" in notes or glob is None


def test_an_address_and_its_digests_are_requested_at_the_same_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    together = threading.Barrier(6)  # the archive, four lists, its own file

    def probe(url: str, *_: object) -> http_probe.Probe:
        together.wait(60)
        return http_probe.Probe(len(GZ), None, GZ)

    def fetch_text(url: str, *_: object) -> str | None:
        together.wait(60)
        return hashlib.sha256(GZ).hexdigest() if url.endswith(".gz.sha256") else None

    monkeypatch.setattr(http_probe, "probe", probe)
    monkeypatch.setattr(http_probe, "fetch_text", fetch_text)
    (shard,) = opened(SourceKind.URL, "https://host/s/a.tar.gz").shards()
    assert shard.files[0].digest == Digest("sha256", hashlib.sha256(GZ).hexdigest())


@pytest.mark.parametrize("path", ["/s/SHA256SUMS", "/s/a.tar.gz.sha256"])
@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        pytest.param(faults.busy(1, retry_after="0"), Cause.RATE_LIMITED, id="busy"),
        pytest.param(faults.reset_after(5), Cause.NETWORK, id="reset"),
        pytest.param(faults.cut_after(5), Cause.NETWORK, id="cut"),
    ],
)
def test_a_moment_s_trouble_switches_no_digest_off(
    web: FaultyServer,
    monkeypatch: pytest.MonkeyPatch,
    fault: faults.Fault,
    cause: Cause,
    path: str,
) -> None:
    web.put("/s/a.tar.gz", GZ)
    web.put(path, f"{hashlib.sha256(GZ).hexdigest()}  a.tar.gz".encode())
    web.fail(path, fault)
    assert opened(SourceKind.URL, web.url("/s/a.tar.gz")).shards()[0].files[0].digest is not None
    monkeypatch.setattr(http_probe, "_ATTEMPTS", 1)
    web.fail(path, fault)
    with pytest.raises(SourceError, match="--sha256") as refused:
        opened(SourceKind.URL, web.url("/s/a.tar.gz")).shards()
    assert refused.value.cause is cause


@pytest.mark.slow
def test_https_to_an_http_server_is_reported(
    web: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_probe, "_ATTEMPTS", 1)
    with pytest.raises(SourceError, match="TLS failed") as refused:
        opened(SourceKind.URL, web.url("/a.tar").replace("http", "https")).shards()
    assert refused.value.cause is Cause.NETWORK


def test_addresses_that_fail_for_one_reason_are_one_message(web: FaultyServer) -> None:
    web.put("/s/03.tar", GZ)
    with pytest.raises(SourceError) as caught:
        opened(SourceKind.URL, web.url("/s/") + "{01..09}.tar").shards()
    assert caught.value.message.startswith("/s/01.tar and 7 more: ")
    assert caught.value.message.count("status 404") == 1
    assert caught.value.cause is Cause.NOT_FOUND


@pytest.mark.parametrize("status", [401, 403, 404, 410])
def test_a_list_of_digests_that_is_not_there_or_not_for_us_is_none(
    web: FaultyServer, status: int
) -> None:
    web.put("/s/a.tar.gz", GZ)
    web.fail("/s/*sha256*", faults.status(status, None))
    web.fail("/s/SHA256SUMS", faults.status(status, None))
    assert opened(SourceKind.URL, web.url("/s/a.tar.gz")).shards()[0].files[0].digest is None


def test_the_fragment_of_an_address_is_not_sent(web: FaultyServer) -> None:
    web.put("/s/a.tar.gz", GZ)
    shard = opened(SourceKind.URL, web.url("/s/a.tar.gz") + "#b/c.zip").shards()[0]
    assert (shard.name, shard.files[0].locator) == ("a.tar.gz", web.url("/s/a.tar.gz"))
    assert len(web.asked("/s/a.tar.gz")) == 1  # and not as a list of digests


def test_a_url_s_secrets_are_private(web: FaultyServer) -> None:
    web.put("/f", GZ, signed=True)
    web.fail("/f", faults.attachment("../../evil/websight.tar.gz"))
    address = web.signed_url("/f")
    source = opened(SourceKind.URL, address)
    shard = source.shards()[0]
    assert (shard.name, shard.files[0].locator) == ("websight.tar.gz", web.url("/f"))
    assert source.private() == {f"{shard.id}#0": address}
    assert "Signature" not in repr(source.describe()) + repr(source.shards())


@pytest.mark.parametrize("status", [400, 403, 410])
@pytest.mark.parametrize("signed", [True, False])
def test_a_refusal_of_a_signed_address_says_how_to_give_another(
    web: FaultyServer, tmp_path: Path, status: int, signed: bool
) -> None:
    web.put("/f.tar.gz", GZ)
    address = web.signed_url("/f.tar.gz") if signed else web.url("/f.tar.gz")
    source = opened(SourceKind.URL, address)
    assert isinstance(source, RemoteSource)
    (shard,) = source.shards()
    web.fail("/f.tar.gz", faults.status(status, None))
    by = Transfer(1, progress=Progress(), backoff_s=0.01, tries=2)
    with pytest.raises(SourceError, match=f"status {status}") as error:
        source.fetch(shard.files[0], f"{shard.id}#0", by, tmp_path / "out")
    assert ("`resume --url-list FILE` takes new addresses" in error.value.message) is signed
    assert "Signature" not in error.value.message


@pytest.mark.parametrize(
    ("fault", "cause", "words"),
    [
        (faults.html(None), Cause.BAD_SOURCE, "web page"),
        (faults.status(401, None), Cause.AUTHENTICATION, "--header"),
        (faults.status(407, None), Cause.AUTHENTICATION, "the proxy requires a login"),
        (faults.status(404, None), Cause.NOT_FOUND, "no such file"),
        (faults.redirect_loop(), Cause.BAD_SOURCE, "redirects"),
    ],
)
def test_a_url_s_refusals_say_what_to_do(
    web: FaultyServer,
    monkeypatch: pytest.MonkeyPatch,
    fault: faults.Fault,
    cause: Cause,
    words: str,
) -> None:
    monkeypatch.setattr(http_probe, "_ATTEMPTS", 1)
    web.put("/a.tar", GZ)
    web.fail("/a.tar", fault)
    with pytest.raises(SourceError) as refused:
        opened(SourceKind.URL, web.url("/a.tar") + "?sig=hush").shards()
    assert refused.value.cause is cause
    assert words in refused.value.message
    assert "hush" not in refused.value.message


def test_files_of_one_name_from_several_folders_are_apart(web: FaultyServer) -> None:
    addresses = []
    for folder in ("train", "test", "2/test", "3/test"):
        for mark, data in (("aa", GZ), ("ab", b"\xff" * 900)):
            web.put(f"/{folder}/part_{mark}", data)
            addresses.append(web.url(f"/{folder}/part_{mark}"))
    source = opened(SourceKind.URL, *addresses)
    assert [[file.name for file in shard.files] for shard in source.shards()] == [
        ["0004/test/part_aa", "0004/test/part_ab"],
        ["0006/test/part_aa", "0006/test/part_ab"],
        ["part_aa", "part_ab"],
        ["test/part_aa", "test/part_ab"],
    ]
    [note] = source.notes()
    assert (
        "8 files are read as the pieces of 4 archives, beginning with '0004/test/part_aa'" in note
    )


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(faults.status(522, Retry_After="0"), id="a proxy's own status"),
        pytest.param(faults.reset_after(5), id="reset"),
        pytest.param(faults.cut_after(5), id="cut"),
        pytest.param(faults.status(511), id="a captive portal"),
    ],
)
def test_a_moment_s_trouble_of_a_url_is_asked_about_again(
    web: FaultyServer, monkeypatch: pytest.MonkeyPatch, fault: faults.Fault
) -> None:
    web.put("/a.tar.gz", GZ)
    web.fail("/a.tar.gz", fault)
    assert names(opened(SourceKind.URL, web.url("/a.tar.gz"))) == ["a.tar.gz"]
    assert len(web.asked("/a.tar.gz")) == 2
    monkeypatch.setattr(http_probe, "_ATTEMPTS", 1)
    web.fail("/a.tar.gz", fault)
    with pytest.raises(SourceError) as refused:
        opened(SourceKind.URL, web.url("/a.tar.gz")).shards()
    assert refused.value.cause is Cause.NETWORK


def test_a_header_comes_from_the_environment_and_stays_at_its_origin(
    web: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.put("/a.tar.gz", GZ, authorization="Bearer hush")
    words = {"header_env": (("Authorization", "MY_TOKEN"),)}
    with pytest.raises(SourceError, match="MY_TOKEN"):
        opened(SourceKind.URL, web.url("/a.tar.gz"), **words).shards()
    monkeypatch.setenv("MY_TOKEN", "Bearer hush")
    assert names(opened(SourceKind.URL, web.url("/a.tar.gz"), **words)) == ["a.tar.gz"]
    web.fail("/b.tar.gz", faults.redirect(web.url("/c.tar.gz", "other")))
    web.put("/c.tar.gz", GZ)
    opened(SourceKind.URL, web.url("/b.tar.gz"), **words).shards()
    assert [r.headers.get("authorization") for r in web.asked("/c.tar.gz")] == [None]


def test_another_origin_does_not_choose_where_a_header_goes(
    web: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_TOKEN", "Bearer hush")
    web.put("/c.tar.gz", GZ)
    web.fail("/a.tar.gz", faults.redirect(web.url("/b.tar.gz", "other")))
    web.fail("/b.tar.gz", faults.redirect(web.url("/c.tar.gz")))
    words = {"header_env": (("Authorization", "MY_TOKEN"),)}
    opened(SourceKind.URL, web.url("/a.tar.gz"), **words).shards()
    sent = [web.asked(f"/{name}.tar.gz")[0].headers.get("authorization") for name in "abc"]
    assert sent == ["Bearer hush", None, None]


def test_a_header_of_the_user_s_goes_before_an_account_in_netrc(
    web: FaultyServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password other\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("MY_TOKEN", "Bearer hush")
    web.put("/a.tar.gz", GZ, authorization="Bearer hush")
    words = {"header_env": (("authorization", "MY_TOKEN"),)}
    assert names(opened(SourceKind.URL, web.url("/a.tar.gz"), **words)) == ["a.tar.gz"]


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("https://www.dropbox.com/s/abc/d.tar?dl=0", "dl=1"),
        ("https://www.dropbox.com/scl/fi/abc/d.tar?rlkey=hush", "dl=1"),
        ("https://drive.google.com/file/d/1aB_2-c/view?usp=sharing", "confirm=t&id=1aB_2-c"),
        ("https://drive.google.com/open?id=hush", "drive.usercontent.google.com"),
        ("https://drive.google.com/drive/folders/1aB", "--local-path"),
        ("https://huggingface.co/datasets/o/d/blob/main/d.tar", "/resolve/"),
        ("https://huggingface.co/datasets/o/d", "--hf-repo"),
        ("https://huggingface.co/datasets/o/d/tree/main/data", "--hf-repo"),
        ("https://github.com/o/d/blob/main/d.tar", "/raw/"),
    ],
)
def test_the_address_of_a_page_is_refused_with_that_of_the_file(url: str, words: str) -> None:
    with pytest.raises(SourceError, match="the address of a page") as refused:
        opened(SourceKind.URL, url)
    assert words in refused.value.message
    assert "hush" not in refused.value.message


@pytest.mark.parametrize(
    "url",
    [
        "https://www.dropbox.com/s/abc/d.tar?dl=1",
        "https://www.dropbox.com/s/abc/d.tar?raw=1",
        "https://dl.dropboxusercontent.com/s/abc/d.tar",
        "https://drive.google.com/uc?export=download&id=1aB",
        "https://huggingface.co/datasets/o/d/resolve/main/d.tar",
        "https://huggingface.co/api/datasets/o/d/parquet/default/train/0.parquet",
        "https://storage.googleapis.com/o/blob/d.tar",
    ],
)
def test_the_address_of_a_file_is_asked(url: str) -> None:
    assert opened(SourceKind.URL, url).describe().kind is SourceKind.URL


def test_a_web_page_in_place_of_a_file_is_asked_about_again(web: FaultyServer) -> None:
    web.put("/a.tar", GZ)
    web.fail("/a.tar", faults.html(2))
    assert names(opened(SourceKind.URL, web.url("/a.tar"))) == ["a.tar"]
    assert len(web.asked("/a.tar")) == 3


@pytest.mark.parametrize(
    ("path", "query", "words"),
    [
        ("/s/abc/d.tar", "?dl=0", "dl=1"),
        ("/datasets/o/d/blob/main/d.tar", "", "/resolve/"),
        ("/o/d/-/blob/main/d.tar", "", "/-/raw/"),
        ("/d.tar", "", "in a browser"),
    ],
)
def test_an_address_that_gives_a_page_is_refused_with_what_to_write(
    web: FaultyServer, monkeypatch: pytest.MonkeyPatch, path: str, query: str, words: str
) -> None:
    monkeypatch.setattr(http_probe, "_ATTEMPTS", 1)
    web.put(path, GZ)
    web.fail(path, faults.html(None))
    with pytest.raises(SourceError, match="returns a web page") as refused:
        opened(SourceKind.URL, web.url(path) + query).shards()
    assert words in refused.value.message
    assert refused.value.cause is Cause.BAD_SOURCE


def test_a_port_that_is_none_is_refused() -> None:
    with pytest.raises(SourceError, match="not an http or https URL"):
        opened(SourceKind.URL, "http://h:99999/a.tar")


def test_an_address_of_the_hub_is_no_url() -> None:
    with pytest.raises(SourceError, match="give it to --hf-repo"):
        opened(SourceKind.URL, "hf://datasets/org/d")


def test_braces_and_lists_are_read() -> None:
    assert url_lists.expand_braces("http://h/{08..10}-{a,b}") == [
        f"http://h/{n}-{c}" for n in ("08", "09", "10") for c in "ab"
    ]
    listed = url_lists.parse_url_list("# all\nimages/a.tar http://h/1\nhttp://h/{1..2}  # two\n")
    assert [(a.name, a.url) for a in listed] == [
        ("images/a.tar", "http://h/1"),
        (None, "http://h/1"),
        (None, "http://h/2"),
    ]
    [first] = url_lists.parse_url_list("file_name\tcdn_link\nsa_0.tar\thttp://h/0?x=1\n")
    assert (first.name, first.url) == ("sa_0.tar", "http://h/0?x=1")
    named = ("../a", "/a", "a//b", "a/", "a/./b")
    bad_names = (f"{name} http://h/1" for name in named)
    for bad in (*bad_names, "no address", "a b\nc d\nhttp://h/1", "", "http://h/{0..999999999}"):
        with pytest.raises(SourceError) as refused:
            url_lists.parse_url_list(bad)
        assert refused.value.cause is Cause.USAGE


def test_the_end_of_a_url_with_a_space_is_not_taken_for_a_name() -> None:
    with pytest.raises(SourceError, match="as %20") as refused:
        url_lists.parse_url_list("http://h/my data.tar?token=hidden")
    assert "hidden" not in refused.value.message
    with pytest.raises(SourceError, match="as %20"):
        url_lists.addresses(["http://h/my data.tar"])


@pytest.mark.parametrize(
    "digests",
    [
        pytest.param(("0" * 64,), id="too few"),
        pytest.param(("0" * 64,) * 3, id="too many"),
        pytest.param(("0" * 64, "0" * 63), id="too short"),
        pytest.param(("0" * 64, "g" * 64), id="not hexadecimal"),
    ],
)
def test_digests_that_do_not_belong_to_the_urls_are_refused(digests: tuple[str, ...]) -> None:
    with pytest.raises(SourceError, match="--sha256") as refused:
        opened(SourceKind.URL, "http://h/1.tar", "http://h/2.tar", sha256=digests)
    assert refused.value.cause is Cause.USAGE


@pytest.mark.parametrize(
    "locators",
    [
        ("http://h/a.tar", "http://H:80/a.tar#again"),
        ("http://h/a.tar?id=1", "http://h/{b,a}.tar?id=1"),
        ("one.tar\thttp://h/a.tar", "two.tar\thttp://h/a.tar"),
    ],
)
def test_one_address_given_twice_is_refused(locators: tuple[str, ...]) -> None:
    with pytest.raises(SourceError, match="is given twice") as refused:
        opened(SourceKind.URL, *locators)
    assert refused.value.cause is Cause.USAGE
    opened(SourceKind.URL, "http://h/a.tar?id=1", "http://h/a.tar?id=2", "http://g/a.tar?id=1")


# Folders --------------------------------------------------------------------------------------


def make(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def kinds(shards: object) -> list[tuple[str, ShardKind]]:
    assert isinstance(shards, (list, tuple))
    return [(s.name, s.kind) for s in shards if isinstance(s, Shard)]


def test_all_of_a_folder_comes_but_what_a_repository_carries_beside_it(tmp_path: Path) -> None:
    beside = {"SHA256SUMS": b"", "a.md5": b"x", ".git/HEAD": b"x", "d.tar:Zone.Identifier": b"x"}
    beside |= {"notes.txt.asc": b"x"}  # the other one is a grid of heights
    files = FILES | beside | {"heights.asc": b"ncols 4\n"}
    source = opened(SourceKind.LOCAL, make(tmp_path / "d", files))
    assert names(source) == [*SHOWN[:3], "heights.asc", *SHOWN[3:]]
    (note,) = (note for note in source.notes() if "left out" in note)
    for name in (
        "'SHA256SUMS'",
        "'a.md5'",
        "'.git'",
        "'.gitattributes'",
        "'d.tar:Zone.Identifier'",
    ):
        assert name in note


HELD = {name: GZ + name.encode() for name in ("a.tar.gz", "b/c.tar.gz")}


def listed(algorithm: str, form: str, name: str = "a.tar.gz", own: str | None = None) -> bytes:
    value = hashlib.new(algorithm, HELD[name]).hexdigest()
    return form.format(value, name if own is None else own).encode()


@pytest.mark.parametrize(
    ("name", "text", "algorithm"),
    [
        ("SHA256SUMS.txt", listed("sha256", "{} {}\n"), "sha256"),
        ("md5sum.txt", listed("md5", "{}  ./{}\n"), "md5"),
        ("checksums.txt", listed("sha1", "{} *{}\n"), "sha1"),
        ("SHA512SUMS", listed("sha512", "SHA512 ({1}) = {0}\n"), "sha512"),
        ("a.tar.gz.md5", listed("md5", "{}"), "md5"),
        ("a.tar.gz.md5", listed("md5", "{}  /home/me/{}"), "md5"),
        ("B3SUMS", listed("sha256", "{}  {}\n"), None),
        ("md5sum.txt", listed("md5", "{}  /data/release/{}\n"), "md5"),
        ("md5sum.txt", listed("md5", "{1}: {0}\n"), "md5"),
        ("SHA256SUMS", listed("sha256", "SHA2-256({1})= {0}\n"), "sha256"),
        ("md5sum.txt", listed("sha256", "{}  {}\n"), None),
        ("md5sum.txt", listed("md5", "{}  other.tar.gz\n"), None),
        ("pages-sha256.txt", listed("sha256", "{}  {}\n"), "sha256"),
        ("MD5.txt", listed("md5", "{}  out/{}\n"), "md5"),
        ("md5.txt", b"of the pictures", None),
    ],
)
def test_files_of_a_folder_have_the_digests_that_are_listed_beside_them(
    tmp_path: Path, name: str, text: bytes, algorithm: str | None
) -> None:
    root = make(tmp_path / "d", {**HELD, name: text})
    expected = hashlib.new(algorithm, HELD["a.tar.gz"]).hexdigest() if algorithm else None
    for place, more in ((root, {}), (root, {"include": ("*.gz",)}), (root / "a.tar.gz", {})):
        source = opened(SourceKind.LOCAL, place, **more)
        (file, *_) = (shard.files[0] for shard in source.shards())
        assert file.digest == (expected and Digest(algorithm or "", expected))
        assert ("1 file is compared with the digests" in "".join(source.notes())) is bool(expected)


def test_what_may_be_a_list_of_digests_or_data_is_published(tmp_path: Path) -> None:
    lists = {"pages_md5.txt": listed("md5", "{}  {}"), "sha256.txt": b"of the pictures"}
    source = opened(SourceKind.LOCAL, make(tmp_path / "d", {**HELD, **lists}))
    assert names(source)[2:] == sorted(lists)


def test_of_several_lists_the_one_with_the_longest_digests_and_not_excluded_counts(
    tmp_path: Path,
) -> None:
    lists = {
        "MD5SUMS": listed("md5", "{}  {}"),
        "SHA256SUMS": listed("sha256", "{}  {}"),
        "b/md5sums.txt": listed("md5", "{}  {}", "b/c.tar.gz", "c.tar.gz"),
    }
    root = make(tmp_path / "d", {**HELD, **lists})
    for exclude, algorithm in (((), "sha256"), (("SHA256SUMS",), "md5")):
        source = opened(SourceKind.LOCAL, root, exclude=exclude)
        files = [shard.files[0] for shard in source.shards()]
        assert [file.digest and file.digest.algorithm for file in files] == [algorithm, "md5"]


@pytest.mark.parametrize(
    ("glob", "left"),
    [
        ("b", "b/*"),
        ("b/", "b/*"),
        ("d/b", "d/b/*"),
        ("a.tar.gz", ""),
        ("b/*", ""),
        ("c.tar.gz", ""),
    ],
)
def test_a_folder_that_excludes_no_file_is_noted(tmp_path: Path, glob: str, left: str) -> None:
    files = {"a.tar.gz": GZ + b"a", "b/c.tar.gz": GZ + b"c", "d/b/e.tar.gz": GZ + b"e"}
    with FaultyServer({f"/{name}": data for name, data in files.items()}) as web:
        urls = (f"{name}\t{web.url(f'/{name}')}" for name in files)
        source = opened(SourceKind.URL, *urls, exclude=(glob,))
        noted = [note for note in source.notes() if "the name of a folder" in note]
    assert [f"write '{left}'" in note for note in noted] == [True] * bool(left)


@pytest.mark.parametrize(
    ("text", "algorithms"),
    [
        (listed("md5", "{}  {}"), ["md5", None]),
        (listed("md5", "{}  ../{}"), ["md5", None]),
        (listed("md5", "{}  C/{}", "b/c.tar.gz", "c.tar.gz"), [None, None]),
        (listed("md5", "{}  /x/{}\n") + listed("md5", "{}  /y/{}\n"), [None, None]),
        (b"", [None, None]),
    ],
)
def test_a_list_of_digests_in_a_folder_of_its_own_is_for_all_files_or_named_as_unused(
    tmp_path: Path, text: bytes, algorithms: list[str | None]
) -> None:
    source = opened(SourceKind.LOCAL, make(tmp_path / "d", {**HELD, "sums/md5sum.txt": text}))
    files = [shard.files[0] for shard in source.shards()]
    assert [file.digest and file.digest.algorithm for file in files] == algorithms
    unused = "nothing is compared with 'sums/md5sum.txt'"
    assert (unused in "".join(source.notes())) is not any(algorithms)


@pytest.mark.parametrize(
    ("files", "noted"),
    [
        (("train/0.tar", "train/1.tar", "val/0.tar"), "archives that may be different sets"),
        (("a/train-0-of-2.parquet", "b/train-0-of-2.parquet"), "parquet files that may be"),
        (("data/train-0.parquet", "data/test-0.parquet"), "('data/test-*', 'data/train-*')"),
        (("test.parquet", "train.parquet"), "with --include 'test.parquet'"),
        (("0.tar", "val/0.tar"), "with --include 'val/*'"),
        (("d-train-0.tar", "d-train-1.tar", "d-val-0.tar"), "('d-train-*', 'd-val-*')"),
        (("train2017.zip", "val2017.zip", "readme/a.txt.gz"), ""),
        (("images.tar", "shard-0.tar", "shard-1.tar"), ""),
        (("data/train-0-of-2-a1f.parquet", "data/train-1-of-2-c8.parquet"), ""),
        (("1f.parquet", "2e.parquet", "1f.tar"), ""),
    ],
)
def test_a_note_says_which_archives_may_be_different_sets(
    tmp_path: Path, files: tuple[str, ...], noted: str
) -> None:
    heads = {".parquet": b"PAR1", ".zip": b"PK\x03\x04"}
    contents = {name: heads.get(Path(name).suffix, GZ) + name.encode() for name in files}
    root = make(tmp_path / "d", contents)
    source = opened(SourceKind.LOCAL, root, include=("*",))
    found = [note for note in source.notes() if "may be different sets" in note]
    assert len(found) == bool(noted)
    assert noted in "".join(found)


@pytest.mark.parametrize(
    ("files", "ids"),
    [
        (("train/0.tar", "val/0.tar"), ["0000-train-0", "0001-val-0"]),
        (("data/train/0.tar", "data/val.tar"), ["0000-train-0", "0001-val"]),
        (("data/0.tar", "data/1.tar", "docs/a.md"), ["0000-0", "0001-1", "0002-a.md"]),
    ],
)
def test_ids_have_the_folders_in_which_archives_differ(
    tmp_path: Path, files: tuple[str, ...], ids: list[str]
) -> None:
    root = make(tmp_path / "d", {name: GZ if name.endswith("tar") else b"x" for name in files})
    assert [shard.id for shard in opened(SourceKind.LOCAL, root).shards()] == ids


def test_names_have_any_digits(tmp_path: Path) -> None:
    listed = ["m٣.tar", "m²2.tar", "m²10.tar"]
    root = make(tmp_path / "d", dict.fromkeys(reversed(listed), GZ))
    assert names(opened(SourceKind.LOCAL, root)) == listed
    assert natural_key("9" * 5000) and families([f"a.{'9' * 5000}", f"a.{'8' * 5000}"]) == []
    assert expand_braces(pattern := f"http://h/{{0..{'9' * 5000}}}") == [pattern]


@pytest.mark.parametrize(
    "files", [{"prompts.jsonl": b"{}", "images/a.png": b"x"}, {"a.txt": b"x", "b/c.txt": b"y"}]
)
def test_a_dataset_s_folder_is_one_tree(tmp_path: Path, files: dict[str, bytes]) -> None:
    shards = opened(SourceKind.LOCAL, make(tmp_path / "d", files)).shards()
    assert kinds(shards) == [("d", ShardKind.TREE)]
    assert shards[0].size == sum(map(len, files.values()))


def test_what_a_copied_folder_leaves_out_is_listed_and_not_counted(tmp_path: Path) -> None:
    data = {"prompts.jsonl": b"{}", "images/.gitkeep": b"", ".github/x.yml": b"x"}
    left = {"Thumbs.db": b"x", "images/._a.png": b"x", ".gitignore": b"x"}
    source = opened(SourceKind.LOCAL, make(tmp_path / "d", data | left))
    (tree,) = source.shards()
    assert tree.kind is ShardKind.TREE
    copied, listed = source.notes()
    assert "its 3 files are copied" in copied
    assert all(repr(name) in listed for name in left)


@pytest.mark.parametrize(
    ("names", "layout", "lacks"),
    [
        (["a.bin", "b/c.npy"], Layout(), True),
        (["a.bin", "b/c.npy"], Layout("websight"), True),
        (["a.bin", "b/c.npy"], Layout("files"), False),
        (["a.jpg", "a.cls"], Layout("webdataset"), False),
        (["a.bin", "prompts.jsonl"], Layout(), False),
        (["a.bin", "b/labels.CSV"], Layout(), False),
        (["a.bin", "b/list.txt"], Layout(records="list.txt"), False),
        (["a.bin", "b.tar"], Layout(), False),
    ],
)
@pytest.mark.parametrize("more", [0, 501], ids=["few", "many"])
def test_files_without_records_are_noted_before_the_launch(
    tmp_path: Path, names: list[str], layout: Layout, lacks: bool, more: int
) -> None:
    files = dict.fromkeys([*names, *(f"x/{number}.bin" for number in range(more))], b"x")
    source = opened(SourceKind.LOCAL, make(tmp_path / "d", files), layout=layout)
    source.shards()
    assert any("launch with --layout files" in note for note in source.notes()) is lacks


def test_what_publishing_left_beside_a_dataset_is_no_data(tmp_path: Path) -> None:
    data = {"prompts.jsonl": b"{}", "images/a.png": b"x"}
    ours = {
        "RECEIPT.json": b"{}",
        "MANIFEST.jsonl": b"{}",
        ".archives/a.tar": b"tar",
        ".incoming/x": b"x",
    }
    source = opened(SourceKind.LOCAL, make(tmp_path / "d", data | ours))
    (tree,) = source.shards()
    assert (tree.kind, tree.size) == (ShardKind.TREE, 3)
    assert isinstance(source, LocalFiles)
    listed = source.list_tree(tree, tmp_path / "listing", lambda: None)
    assert listed.members == 3
    # What launch has found is the same.
    assert write_blocks(source.listings()[tree.id], tmp_path / "again", tree.parts) == listed


def test_unfinished_downloads_of_the_hubs_client_are_reported(tmp_path: Path) -> None:
    files = {"a.tar": GZ, ".cache/huggingface/download/x/a.abc.incomplete": b"x"}
    source = opened(SourceKind.LOCAL, make(tmp_path / "d", files))
    assert names(source) == ["a.tar"]
    assert any("unfinished download ('a.abc.incomplete')" in note for note in source.notes())


def test_a_name_that_is_not_utf_8_is_refused_unless_its_folder_is_copied(tmp_path: Path) -> None:
    odd = os.fsdecode(b"\xff.txt")
    root = make(tmp_path / "d", {"a.tar": GZ, odd: b"x"})
    with pytest.raises(SourceError, match="is not UTF-8; rename the file"):
        opened(SourceKind.LOCAL, root).shards()
    tree = opened(SourceKind.LOCAL, root, exclude=("*.tar",))
    assert kinds(tree.shards()) == [("d", ShardKind.TREE)]


def test_run_folders_within_a_folder_are_no_data(tmp_path: Path) -> None:
    run = "logs/20260101-000000-abcdef"
    data = {"prompts.jsonl": b"{}", "images/a.png": b"x", "20260101-000000-abcdef/a.txt": b"x"}
    ours = {f"{run}/plan.json": b"{}", f"{run}/results/download/0.0.json": b"{}"}
    source = opened(SourceKind.LOCAL, make(tmp_path / "d", data | ours))
    (tree,) = source.shards()
    assert tree.size == 4
    assert any("left out" in note and f"'{run}'" in note for note in source.notes())
    assert isinstance(source, LocalFiles)
    listed = source.list_tree(tree, tmp_path / "listing", lambda: None)
    assert write_blocks(source.listings()[tree.id], tmp_path / "again", tree.parts) == listed
    assert listed.members == 6  # with the folders, that of the logs too


def test_a_link_to_an_archive_beside_it_is_no_second_one(tmp_path: Path) -> None:
    root = make(tmp_path / "d", {"shard-1.tar": GZ, "shard-2.tar": GZ})
    (root / "latest.tar").symlink_to("shard-2.tar")
    with pytest.raises(SourceError, match=r"'latest\.tar' and 'shard-2\.tar' are the same archive"):
        opened(SourceKind.LOCAL, root).shards()
    left = opened(SourceKind.LOCAL, root, exclude=("latest*",))
    assert names(left) == ["shard-1.tar", "shard-2.tar"]


def test_what_cannot_be_read_says_why(tmp_path: Path) -> None:
    make(tmp_path, {"d/a.rar": b"Rar!", "d/b.7z.001": b"7z", "e/x.tar": GZ})
    with pytest.raises(SourceError, match="unrar"):
        opened(SourceKind.LOCAL, tmp_path / "d").shards()
    with pytest.raises(SourceError, match="7z x"):
        opened(SourceKind.LOCAL, tmp_path / "d", exclude=("*.rar",)).shards()
    with pytest.raises(SourceError, match=r"did you mean 'x\.tar'"):
        opened(SourceKind.LOCAL, tmp_path / "e" / "x.tra").shards()
