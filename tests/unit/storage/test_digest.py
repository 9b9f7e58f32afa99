"""Digests by name: the check values of their definitions, and what a Python without them says."""

from __future__ import annotations

import sys

import pytest

from jobs.errors import UsageError
from jobs.storage import digest

# Of the catalogue of https://reveng.sourceforge.io/crc-catalogue/all.htm
CHECKED = b"123456789"
CRCS = {"crc32": "cbf43926", "crc32c": "e3069283", "crc64nvme": "ae8b14860a799888"}


@pytest.mark.parametrize(("name", "value"), CRCS.items())
def test_a_crc_has_the_value_of_its_definition(name: str, value: str) -> None:
    assert digest.of(name, [CHECKED[:4], memoryview(CHECKED[4:])]) == value
    assert len(digest.of(name, [b""])) == digest.HEX_LENGTHS[name]


def test_a_crc_of_a_store_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "anycrc", None)
    with pytest.raises(UsageError, match="pip install 'websight-orchestrate\\[cloud\\]'"):
        digest.new("crc64nvme")
