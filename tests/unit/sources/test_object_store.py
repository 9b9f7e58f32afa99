"""Object stores: their addresses, credentials, refusals, and objects that change."""

from __future__ import annotations

import functools
import hashlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path

import botocore.session
import pytest
from botocore.stub import Stubber

from jobs.errors import Cause, SourceError, UsageError
from jobs.model import Digest, SourceKind
from jobs.runtime.progress import Progress
from jobs.sources import object_store
from jobs.sources.base import RemoteSource, Source, SourceRequest
from jobs.sources.object_urls import ObjectUrl
from jobs.sources.registry import open_source, reopen
from jobs.sources.s3 import S3Client
from jobs.storage import digest
from jobs.transfer.transfer import Transfer
from tests.support.builders.contents import tarred
from tests.support.servers import faults
from tests.support.servers.azureserver import AzureServer
from tests.support.servers.gcsserver import GcsServer
from tests.support.servers.s3server import S3Server

GZ = b"\x1f\x8b\x08\x00" + bytes(2000)
MB = 1 << 20


@pytest.fixture(scope="module", autouse=True)
def one_loader() -> Iterator[None]:
    """botocore parses its descriptions of services once, not for each client."""
    with pytest.MonkeyPatch.context() as patch:
        loader = functools.cache(botocore.session.create_loader)
        patch.setattr(botocore.session, "create_loader", loader)
        yield


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server whose key is in the environment."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    with S3Server() as server:
        for name, value in server.env.items():
            monkeypatch.setenv(name, value)
        yield server


def opened(*urls: str, **more: object) -> Source:
    return open_source(SourceRequest(SourceKind.STORE, urls, **more))  # type: ignore[arg-type]


def names(source: Source) -> list[str]:
    return [shard.name for shard in source.shards()]


def refused(*urls: str, **more: object) -> SourceError:
    with pytest.raises(SourceError) as error:
        opened(*urls, **more).shards()
    assert "\n" not in error.value.message
    assert S3Server.secret not in error.value.message
    return error.value


def fetch(source: Source, out: Path) -> bytes:
    """The bytes of the only shard, as a compute node gets them."""
    transfer = Transfer(2, stall_s=5, progress=Progress(), backoff_s=0.01, tries=3)
    there = reopen(source.describe(), None, {})  # type: ignore[arg-type]
    assert isinstance(there, RemoteSource)
    there.fetch(source.shards()[0].files[0], "", transfer, out)
    return out.read_bytes()


# Addresses --------------------------------------------------------------------------------------


@pytest.mark.slow
def test_objects_prefixes_ranges_and_lists_name_their_files(s3: S3Server) -> None:
    for key in ("a b/ü-1.tar.gz", "a b/ü-2.tar.gz", "a b/SHA256SUMS", "a b/sub/", "one.tar.gz"):
        s3.put(key, GZ if key.endswith("gz") else b"")
    assert names(opened("s3://pages/a b/")) == ["ü-1.tar.gz", "ü-2.tar.gz"]
    assert names(opened("s3://pages/a b/ü-{1..2}.tar.gz")) == ["ü-1.tar.gz", "ü-2.tar.gz"]
    assert names(opened("s3://pages")) == ["a b/ü-1.tar.gz", "a b/ü-2.tar.gz", "one.tar.gz"]
    assert names(opened("first.tar.gz\ts3://pages/one.tar.gz")) == ["first.tar.gz"]
    s3.put("a b/one.tar.gz", GZ + b"2")
    both = opened("s3://pages/one.tar.gz", "s3://pages/a b/one.tar.gz")
    assert names(both) == ["a b/one.tar.gz", "one.tar.gz"]


@pytest.mark.parametrize(
    ("urls", "words"),
    [
        (("s3://pages/one.tar.gz", "https://host/two.tar.gz"), "to separate launches"),
        (
            ("s3://pages/one.tar.gz", f"https://me@host/two.tar?Signature={S3Server.secret}"),
            "'https://host/two.tar' is not in an object store",
        ),
        ((f"az://pages/one.tar?sv=1&sig={S3Server.secret}",), "URLs have no signature"),
        (("s3://pages/one.tar.gz", "gs://pages/two.tar.gz"), "different object stores"),
        (("s3://pages/one.tar.gz", "s3://pages/one.tar.gz"), "give each object once"),
        (("s3:///one.tar.gz",), "s3://BUCKET/KEY"),
        ((f"s3://key:{S3Server.secret}@pages/one.tar.gz",), "s3://BUCKET/KEY"),
        (("s3://no bucket/one.tar.gz",), "cannot be the name of a bucket"),
    ],
)
def test_addresses_that_make_no_sense_are_refused(
    s3: S3Server, urls: tuple[str, ...], words: str
) -> None:
    s3.put("one.tar.gz", GZ)
    error = refused(*urls)
    assert error.cause is Cause.USAGE
    assert words in error.message


def test_a_sha256_of_the_user_is_for_single_objects(s3: S3Server) -> None:
    s3.put("one.tar.gz", GZ)
    value = "ab" * 32
    (shard,) = opened("s3://pages/one.tar.gz", sha256=(value,)).shards()
    assert shard.files[0].digest == Digest("sha256", value)
    assert "single objects" in refused("s3://pages/", sha256=(value,)).message


def test_a_missing_library_is_named_with_its_installation(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "botocore.session", None)
    monkeypatch.setitem(sys.modules, "botocore", None)
    with pytest.raises(UsageError) as caught:
        opened("s3://pages/one.tar.gz")
    message = caught.value.message
    assert "botocore" in message
    assert "pip install 'websight-orchestrate[cloud]'" in message


# Digests ----------------------------------------------------------------------------------------


def test_only_what_is_a_digest_is_used_as_one(s3: S3Server) -> None:
    s3.put("sha256.tar.gz", GZ)
    s3.put("md5.tar.gz", GZ, sha256=False)
    s3.put_in_parts("parts.tar.gz", [b"\x1f\x8b\x08\x00" + bytes(5 * MB), GZ])
    s3.put("kms.tar.gz", GZ, sha256=False)
    s3.fail("/pages/kms.tar.gz", faults.Fault(None, None, headers=KMS))
    digests = {shard.name: shard.files[0].digest for shard in opened("s3://pages/").shards()}
    kinds = {name: digest and digest.algorithm for name, digest in digests.items()}
    assert kinds == {
        "sha256.tar.gz": "sha256",
        "md5.tar.gz": "md5",
        "parts.tar.gz": None,
        "kms.tar.gz": None,
    }


@pytest.mark.parametrize(
    ("name", "written"),
    [
        pytest.param("d/SHA256SUMS", "parts.tar.gz", id="beside"),
        pytest.param("checksums.txt", "out/d/parts.tar.gz", id="above, with other folders"),
        pytest.param("d/parts.tar.gz.sha256", "parts.tar.gz", id="its own"),
    ],
)
def test_an_object_without_a_digest_is_compared_with_a_list_below_the_prefix(
    s3: S3Server, tmp_path: Path, name: str, written: str
) -> None:
    pieces = [b"\x1f\x8b\x08\x00" + bytes(5 * MB), GZ]
    s3.put_in_parts("d/parts.tar.gz", pieces)
    s3.put("d/other.tar.gz", GZ)
    value = hashlib.sha256(b"".join(pieces)).hexdigest()
    s3.put(name, f"{value}  {written}\n{'0' * 64}  other.tar.gz\n".encode())
    shards = opened("s3://pages/", include=("*.gz",)).shards()
    digests = {shard.files[0].name: shard.files[0].digest for shard in shards}
    assert digests["d/parts.tar.gz"] == Digest("sha256", value)
    assert digests["d/other.tar.gz"] == Digest("sha256", hashlib.sha256(GZ).hexdigest())
    left = opened("s3://pages/", exclude=(name,)).shards()
    assert None in {shard.files[0].digest for shard in left}


KMS = {"x-amz-server-side-encryption": "aws:kms"}


# Credentials ------------------------------------------------------------------------------------


def test_public_objects_need_no_credentials(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    s3.add_bucket("open", public=True)
    s3.put("one.tar.gz", GZ, "open")
    source = opened("s3://open/")
    assert fetch(source, tmp_path / "out") == GZ
    assert not [request for request in s3.asked() if "X-Amz-Signature" in request.query]
    s3.put("one.tar.gz", GZ)
    error = refused("s3://pages/one.tar.gz")
    assert error.cause is Cause.AUTHENTICATION
    assert "no credentials were found" in error.message
    assert "AWS_PROFILE" in error.message


def test_a_bucket_whose_readers_pay_is_read_by_those_who_agree(
    s3: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.put("one.tar.gz", GZ)
    s3.reader_pays = True
    assert "AWS_REQUEST_PAYER=requester" in refused("s3://pages/").message
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    assert names(opened("s3://pages/")) == ["one.tar.gz"]
    assert fetch(opened("s3://pages/one.tar.gz"), tmp_path / "out") == GZ


def test_credentials_that_do_not_fit_can_be_ignored(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3.add_bucket("open", public=True)
    s3.put("one.tar.gz", GZ, "open")
    s3.deny("one.tar.gz", "open")  # to those with credentials
    assert "AWS_NO_SIGN_REQUEST=YES" in refused("s3://open/").message
    monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
    assert names(opened("s3://open/")) == ["one.tar.gz"]


def test_a_profile_with_its_own_endpoint_is_used(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in s3.env:
        monkeypatch.delenv(name)
    (tmp_path / "config").write_text(f"[profile lab]\nendpoint_url = {s3.url()}\n")
    keys = f"aws_access_key_id = {s3.access_key}\naws_secret_access_key = {s3.secret}\n"
    (tmp_path / "credentials").write_text(f"[lab]\n{keys}")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    s3.put("one.tar.gz", GZ)
    assert opened("s3://pages/").describe().endpoint == s3.url()
    assert fetch(opened("s3://pages/"), tmp_path / "out") == GZ
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert "the profile other, which does not exist" in refused("s3://pages/").message


@pytest.mark.parametrize("url", ["s3://pages/", "s3://pages/one.tar.gz"])
@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("AWS_ACCESS_KEY_ID", "AKIAOTHER", "does not know this access key"),
        ("AWS_SECRET_ACCESS_KEY", "wrong", "the secret access key is wrong"),
        ("AWS_SECRET_ACCESS_KEY", "", "PartialCredentialsError"),
        ("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9", "cannot be reached"),
        ("AWS_ENDPOINT_URL_S3", "nonsense", "is not an http or https URL"),
    ],
)
def test_wrong_settings_are_named(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, url: str, variable: str, value: str, words: str
) -> None:
    s3.put("one.tar.gz", GZ)
    monkeypatch.setenv(variable, value)
    assert words in refused(url).message


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("s3://elsewhere/", "has no bucket 'elsewhere'"),
        ("s3://elsewhere/one.tar.gz", "has no bucket 'elsewhere'"),
        ("s3://pages/none/", "there are no objects below s3://pages/none/"),
        ("s3://pages/data", "for all archives of this folder write s3://pages/data/"),
        ("s3://pages/data/on.tar.gz", "did you mean 'one.tar.gz'"),
    ],
)
def test_what_does_not_exist_is_named(s3: S3Server, url: str, words: str) -> None:
    s3.put("data/one.tar.gz", GZ)
    error = refused(url)
    assert error.cause is Cause.NOT_FOUND
    assert words in error.message


def test_an_object_that_may_not_be_read_is_found_at_launch(s3: S3Server) -> None:
    s3.put("one.tar.gz", GZ)
    s3.deny("one.tar.gz")
    error = refused("s3://pages/")
    assert error.cause is Cause.AUTHENTICATION
    assert "s3://pages/one.tar.gz: access is denied" in error.message


@pytest.mark.parametrize(
    "headers",
    [{"x-amz-storage-class": "GLACIER"}, {"x-amz-archive-status": "ARCHIVE_ACCESS"}],
)
def test_an_object_on_a_slow_medium_is_named_as_that(
    s3: S3Server, tmp_path: Path, headers: dict[str, str]
) -> None:
    s3.put("one.tar.gz", GZ)
    restored = {**headers, "x-amz-restore": 'ongoing-request="false", expiry-date="x"'}
    s3.fail("/pages/one.tar.gz", faults.Fault(2, None, headers=restored))
    source = opened("s3://pages/one.tar.gz")
    source.shards()
    s3.faults.clear()
    body = b"<Error><Code>InvalidObjectState</Code></Error>"
    s3.fail("/pages/one.tar.gz", faults.Fault(None, "GET", status=403, body=body))
    s3.fail("/pages/one.tar.gz", faults.Fault(None, "HEAD", headers=headers))
    with pytest.raises(SourceError, match=r"storage class .*restore it"):
        fetch(source, tmp_path / "out")
    assert "restore it" in refused("s3://pages/one.tar.gz").message


def test_the_region_of_a_bucket_at_aws_is_looked_up(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3")
    client = S3Client()
    assert client.endpoint is None
    stub = Stubber(client._made(None))
    region = {"HTTPHeaders": {"x-amz-bucket-region": "eu-west-1"}}
    stub.add_client_error("head_bucket", "403", http_status_code=403, response_meta=region)
    with stub:
        target = client.target(ObjectUrl.parse("s3://pages/one.tar"), '"etag"')
    assert target.url.startswith("https://pages.s3.eu-west-1.amazonaws.com/one.tar?")
    assert "%2Feu-west-1%2Fs3%2F" in target.url
    assert target.headers == {"If-Match": '"etag"'}


# Downloads --------------------------------------------------------------------------------------


def test_the_download_uses_the_endpoint_of_the_plan_and_the_credentials_of_its_node(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    s3.put("one.tar.gz", GZ)
    source = opened("s3://pages/one.tar.gz")
    source.shards()
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    assert fetch(source, tmp_path / "out") == GZ
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(SourceError, match="the secret access key is wrong") as error:
        fetch(source, tmp_path / "again")
    assert error.value.cause is Cause.AUTHENTICATION


def test_the_coding_of_an_upload_is_not_one_of_the_object(s3: S3Server, tmp_path: Path) -> None:
    s3.put("one.tar.gz", GZ)
    coded = {"Content-Encoding": "aws-chunked"}
    s3.fail("/pages/one.tar.gz", faults.Fault(None, None, headers=coded))
    assert fetch(opened("s3://pages/one.tar.gz"), tmp_path / "out") == GZ


@pytest.mark.slow
@pytest.mark.parametrize("midway", [False, True], ids=["before", "midway"])
def test_an_object_that_changed_after_the_launch_is_an_error(
    s3: S3Server, tmp_path: Path, midway: bool
) -> None:
    s3.put("one.tar", archive(12 * MB))
    source = opened("s3://pages/one.tar")
    source.shards()
    if midway:
        s3.fail("/pages/one.tar", faults.cut_after(MB), faults.status(404, None))
        with pytest.raises(SourceError, match="was removed or replaced after the launch"):
            fetch(source, tmp_path / "out")
        s3.faults.clear()
        assert s3.bytes_sent("/pages/one.tar") > MB
    s3.put("one.tar", archive(12 * MB, b"2"))
    with pytest.raises(SourceError, match="has changed since the launch") as error:
        fetch(source, tmp_path / "out")
    assert error.value.cause is Cause.CHANGED
    assert not (tmp_path / "out").exists()


def test_an_object_that_was_replaced_is_an_error_although_the_store_ignores_if_match(
    s3: S3Server, tmp_path: Path
) -> None:
    s3.ignores_if_match = True
    s3.put_in_parts("one.tar", [archive(6 * MB)])
    source = opened("s3://pages/one.tar")
    source.shards()
    assert fetch(source, tmp_path / "first") == archive(6 * MB)
    s3.put_in_parts("one.tar", [archive(6 * MB, b"2")])
    with pytest.raises(SourceError, match="was replaced after the launch") as error:
        fetch(source, tmp_path / "out")
    assert error.value.cause is Cause.CHANGED


def test_a_url_that_expires_midway_is_signed_again(
    s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    data = archive(12 * MB)
    s3.put("one.tar", data)
    source = opened("s3://pages/one.tar")
    source.shards()
    clock = Clock(monkeypatch)
    note = s3.note
    s3.requests.clear()

    def later(request: object) -> None:
        note(request)  # type: ignore[arg-type]
        if len(s3.requests) == 3:
            clock.passed = s3.later = timedelta(hours=2)

    monkeypatch.setattr(s3, "note", later)
    assert fetch(source, tmp_path / "out") == data
    assert {request.status for request in s3.requests} == {206, 403}
    assert len({request.query["X-Amz-Signature"] for request in s3.requests}) == 2


class Clock:
    """The clock of the code that signs URLs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.passed = timedelta()
        monkeypatch.setattr("botocore.auth.get_current_datetime", self.now)
        monkeypatch.setattr(object_store, "time", self)

    def now(self, remove_tzinfo: bool = True) -> datetime:
        time = datetime.now(timezone.utc) + self.passed
        return time.replace(tzinfo=None) if remove_tzinfo else time

    def monotonic(self) -> float:
        return self.passed.total_seconds()


def archive(size: int, fill: bytes = b"1") -> bytes:
    return tarred({"notes.bin": fill * size})


# Google Cloud Storage and Azure -----------------------------------------------------------------


def set_env(monkeypatch: pytest.MonkeyPatch, env: Mapping[str, str]) -> None:
    for name in [name for name in os.environ if name.startswith(("AWS_", "AZURE_", "GOOGLE_"))]:
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def gcs(tmp_path: Path) -> Iterator[GcsServer]:
    with GcsServer(tmp_path) as server:
        server.put("one.tar.gz", GZ)
        yield server


def test_public_objects_at_google_need_no_credentials(
    gcs: GcsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_env(monkeypatch, gcs.anonymous_env)
    monkeypatch.setitem(sys.modules, "google.auth.exceptions", None)  # not installed
    assert "no credentials were found" in refused("gs://pages/one.tar.gz").message
    gcs.is_public = True
    assert fetch(opened("gs://pages/"), tmp_path / "out") == GZ
    monkeypatch.undo()
    set_env(monkeypatch, gcs.anonymous_env)
    assert "has no bucket 'elsewhere'" in refused("gs://elsewhere/").message
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
    error = refused("gs://pages/")
    assert error.cause is Cause.AUTHENTICATION
    assert "/nowhere/key.json" in error.message


def test_an_object_at_google_of_several_uploads_is_compared_with_its_crc(
    gcs: GcsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_env(monkeypatch, gcs.env)
    gcs.is_composite = True
    source = opened("gs://pages/one.tar.gz")
    (shard,) = source.shards()
    assert shard.files[0].digest == Digest("crc32c", digest.of("crc32c", [GZ]))
    assert fetch(source, tmp_path / "out") == GZ
    monkeypatch.setitem(sys.modules, "anycrc", None)  # not installed
    assert opened("gs://pages/one.tar.gz").shards()[0].files[0].digest is None


def test_an_object_at_google_that_was_replaced_is_an_error(
    gcs: GcsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_env(monkeypatch, gcs.env)
    source = opened("gs://pages/one.tar.gz")
    source.shards()
    gcs.put("one.tar.gz", GZ + b"2")
    with pytest.raises(SourceError, match="was removed or replaced after the launch"):
        fetch(source, tmp_path / "out")


def test_blobs_come_with_a_key_a_signature_of_the_user_or_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with AzureServer() as azure:
        set_env(monkeypatch, azure.env)
        azure.put("a b/ü.tar.gz", GZ)
        assert fetch(opened("az://pages/a b/"), tmp_path / "key") == GZ
        source = opened("az://pages/a b/ü.tar.gz")
        source.shards()
        signed = azure.asked("/testaccount/pages/a b/ü.tar.gz", "GET")[-1].target.partition("?")[2]
        set_env(monkeypatch, {**azure.anonymous_env, "AZURE_STORAGE_SAS_TOKEN": f"?{signed}"})
        assert fetch(opened("az://pages/a b/ü.tar.gz"), tmp_path / "sas") == GZ
        azure.put("a b/ü.tar.gz", GZ + b"2")
        with pytest.raises(SourceError, match="has changed since the launch"):
            fetch(source, tmp_path / "changed")
        set_env(monkeypatch, azure.anonymous_env)
        monkeypatch.setenv("PATH", str(tmp_path))  # without the `az` of a login
        assert "no credentials were found" in refused("az://pages/").message
        azure.is_public = True
        assert names(opened("az://pages/")) == ["a b/ü.tar.gz"]
        assert "has no container 'elsewhere'" in refused("az://elsewhere/").message
        set_env(monkeypatch, {**azure.env, "AZURE_STORAGE_ACCOUNT_KEY": "not base64"})
        assert refused("az://pages/").cause is Cause.AUTHENTICATION
        set_env(monkeypatch, azure.env)
        azure.fail("/testaccount/pages*", faults.status(403, None) & WRONG_KEY)
        assert "does not accept your credentials" in refused("az://pages/").message
        azure.fail("/testaccount/No_Name*", faults.status(400, None) & INVALID_NAME)
        named = refused("az://No_Name/")
        assert named.message.startswith("'No_Name' cannot be the name of a container")
        assert named.cause is Cause.USAGE


def test_a_blob_in_the_archive_is_named_as_that(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with AzureServer() as azure:
        set_env(monkeypatch, azure.env)
        azure.put("one.tar.gz", GZ)
        source = opened("az://pages/one.tar.gz")
        source.shards()
        azure.archived.add("one.tar.gz")
        with pytest.raises(SourceError, match=r"access tier Archive.* move it to another"):
            fetch(source, tmp_path / "out")
        for url in ("az://pages/one.tar.gz", "az://pages/"):
            assert "access tier Archive" in refused(url).message


WRONG_KEY = faults.Fault(None, None, headers={"x-ms-error-code": "AuthenticationFailed"})
INVALID_NAME = faults.Fault(None, None, headers={"x-ms-error-code": "InvalidResourceName"})


def test_an_address_of_an_account_without_a_scheme_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_env(monkeypatch, {"AZURE_STORAGE_ENDPOINT": "lab.blob.core.windows.net"})
    error = refused("az://pages/")
    assert error.cause is Cause.USAGE and "not an http or https URL" in error.message


def test_the_account_of_a_container_is_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    set_env(monkeypatch, {})
    assert "AZURE_STORAGE_ACCOUNT_NAME" in refused("az://pages/").message
    set_env(monkeypatch, {"AZURE_STORAGE_ACCOUNT": "lab", "AZURE_STORAGE_KEY": AzureServer.secret})
    assert opened("az://pages/").describe().endpoint == "https://lab.blob.core.windows.net"


# All stores -------------------------------------------------------------------------------------

ODD = ("a+b%20c", "h#x?y=1&z", "n\u00a0b", "e\u0301", "%2F", "quote'\"", " end ", "b\u3000")


@pytest.fixture(params=["s3", "gs", "az"])
def store(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[tuple[str, S3Server | GcsServer | AzureServer]]:
    """The scheme of a store, and its server, whose credentials are in the environment."""
    made: dict[str, Callable[[], S3Server | GcsServer | AzureServer]] = {
        "s3": S3Server,
        "gs": lambda: GcsServer(tmp_path),
        "az": AzureServer,
    }
    with made[request.param]() as server:
        set_env(monkeypatch, server.env)
        yield request.param, server


@pytest.mark.slow
def test_keys_may_have_any_characters_and_markers_of_folders_are_no_files(
    store: tuple[str, S3Server | GcsServer | AzureServer], tmp_path: Path
) -> None:
    scheme, server = store
    contents = {f"{name}.tar.gz": GZ + name.encode() for name in ODD}
    for name, data in contents.items():
        server.put(f"k/{name}", data)
    for marker in ("k/sub/", "k/sub_$folder$"):
        server.put(marker, b"-")
    if isinstance(server, AzureServer):
        server.add_folder("k/sub")
    source = opened(f"{scheme}://pages/k/")
    assert sorted(names(source)) == sorted(contents)
    transfer = Transfer(2, stall_s=5, progress=Progress(), backoff_s=0.01, tries=3)
    there = reopen(source.describe(), None, {})  # type: ignore[arg-type]
    assert isinstance(there, RemoteSource)
    for shard in source.shards():
        there.fetch(shard.files[0], "", transfer, tmp_path / "out")
        assert (tmp_path / "out").read_bytes() == contents[shard.name]
        (tmp_path / "out").unlink()


@pytest.mark.slow
def test_a_prefix_with_more_objects_than_a_page_has_is_listed_completely(
    store: tuple[str, S3Server | GcsServer | AzureServer],
) -> None:
    scheme, server = store
    for number in range(43):
        server.put(f"many/{number:04d}.txt", b"x")
    assert len(opened(f"{scheme}://pages/many/").shards()) == 43
    pages = [request for request in server.requests if request.method == "GET"]
    assert len(pages) >= 3


@pytest.mark.slow
def test_a_store_that_knows_no_tokens_of_pages_is_listed_completely(s3: S3Server) -> None:
    s3.knows_lists_of_tokens = False
    for number in range(43):
        s3.put(f"many/{number:04d} %.txt", b"x")
    assert len(opened("s3://pages/many/").shards()) == 43


def test_a_bucket_in_another_region_is_named_with_it(s3: S3Server) -> None:
    s3.put("one.tar.gz", GZ)
    moved = faults.status(301, None) & faults.Fault(
        None, None, headers={"x-amz-bucket-region": "eu-west-1"}
    )
    s3.fail("/pages/one.tar.gz", moved)
    assert "AWS_DEFAULT_REGION=eu-west-1" in refused("s3://pages/one.tar.gz").message


def test_a_bucket_at_google_whose_readers_pay_needs_a_project(
    gcs: GcsServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_env(monkeypatch, gcs.env)
    gcs.fail("/storage/v1/b/pages/o*", faults.status(400, None))
    assert "GS_USER_PROJECT" in refused("gs://pages/").message
    gcs.faults.clear()
    gcs.requests.clear()
    monkeypatch.setenv("GS_USER_PROJECT", "lab-1")
    assert fetch(opened("gs://pages/"), tmp_path / "out") == GZ
    asked = gcs.asked("/storage/v1/b/pages/*", "GET")
    assert len(asked) >= 3  # the list, a look at the first bytes, the download
    assert {request.headers.get("x-goog-user-project") for request in asked} == {"lab-1"}


def test_a_signature_of_the_user_that_has_expired_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with AzureServer() as azure:
        azure.put("one.tar.gz", GZ)
        token = "se=2020-01-02T00%3A00%3A00Z&sig=theSignature"
        set_env(monkeypatch, {**azure.anonymous_env, "AZURE_STORAGE_SAS_TOKEN": token})
        for url in ("az://pages/", "az://pages/one.tar.gz"):
            message = refused(url).message
            assert "AZURE_STORAGE_SAS_TOKEN expired at 2020-01-02 00:00 UTC" in message
            assert "theSignature" not in message
