"""A dataset in a bucket, from the command line: launched, updated, and its key nowhere."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.builders.contents import page_tar
from tests.support.cli import Cli
from tests.support.servers.s3server import S3Server


@pytest.fixture
def s3() -> Iterator[S3Server]:
    with S3Server() as server:
        for number in range(3):
            server.put(f"data/s-{number}.tar", page_tar([2 * number, 2 * number + 1]))
        yield server


def test_a_list_of_objects_may_have_digests_which_an_update_ignores(
    cli: Cli, s3: S3Server, tmp_path: Path
) -> None:
    shell, dest, listed = cli.having(**s3.env), tmp_path / "data", tmp_path / "list.txt"
    before, after = page_tar([0, 1], "old "), page_tar([0, 1], "new ")
    assert len(before) == len(after)
    s3.put("data/s-0.tar", before)
    listed.write_text(f"s3://pages/data/s-0.tar {hashlib.md5(before).hexdigest()}\n")
    words = ("--engine", "local", "--yes", "--dest", dest, "--url-list", listed)
    shell.run("launch", *words)
    s3.put("data/s-0.tar", after)
    shell.run("update", dest, "--engine", "local", "--yes")
    assert b"new " in (dest / "prompts.jsonl").read_bytes()


def test_a_private_prefix_is_published_and_updated_and_no_secret_is_written(
    cli: Cli, s3: S3Server, tmp_path: Path
) -> None:
    shell, dest = cli.having(**s3.env), tmp_path / "data"
    words = ("--engine", "local", "--yes", "--dest", dest, "--url", "s3://pages/data/")
    said = shell.run("launch", *words, "--dry-run").out
    assert "3 archives" in said
    assert not dest.exists()
    done = shell.run("launch", *words)
    said += done.out + done.err
    assert len(list((dest / "images").iterdir())) == 6
    proof = json.loads((dest / "RECEIPT.json").read_bytes())
    assert proof["source"]["locator"] == "s3://pages/data/"
    assert all(shard["digest_verified"] for shard in proof["shards"])
    same = shell.run("update", dest, "--engine", "local", "--yes")
    assert "Nothing changed" in same.out + same.err
    elsewhere = shell.having(AWS_ENDPOINT_URL_S3=s3.url(origin="other"))
    assert "set the variables of the launch" in elsewhere.run("update", dest, rc=2).err
    s3.put("data/s-1.tar", page_tar([2, 3], "new "))
    s3.put("data/s-3.tar", page_tar([6, 7]))
    s3.requests.clear()
    done = shell.run("update", dest, "--engine", "local", "--yes")
    assert "Reused    2 shards" in done.err
    assert {r.path for r in s3.asked("/pages/data/s-*", "GET") if "range" not in r.headers} == {
        "/pages/data/s-1.tar",
        "/pages/data/s-3.tar",
    }
    assert len(list((dest / "images").iterdir())) == 8
    said += done.out + done.err
    secrets = {r.query["X-Amz-Signature"] for r in s3.asked() if "X-Amz-Signature" in r.query}
    secrets |= {s3.secret, s3.access_key}
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(secrets) > 2
    assert [each for each in secrets for text in texts if each.encode() in text] == []
    assert [each for each in secrets if each in said] == []
