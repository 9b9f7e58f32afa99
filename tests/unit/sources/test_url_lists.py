"""New addresses of a run's files."""

from __future__ import annotations

import pytest

from jobs.errors import SourceError
from jobs.model import Shard, ShardKind, SourceFile, SourceKind, SourceRef
from jobs.sources import url_lists
from tests.support.builders.runs import RunBuilder

PLACES = {"1": "a/1.tar", "2": "b/2.tar", "3": "get", "4": "get"}


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        pytest.param("http://h/a/1.tar?k=new#x", {"1#0": "http://h/a/1.tar?k=new"}, id="address"),
        pytest.param("2.tar http://other/x?k=new", {"2#0": "http://other/x?k=new"}, id="name"),
        pytest.param("3.tar\thttp://h/get?k=new", {"3#0": "http://h/get?k=new"}, id="name only"),
        pytest.param(
            "http://h/a/1.tar?k=new\nhttp://h/c.tar", {"1#0": "http://h/a/1.tar?k=new"}, id="others"
        ),
        pytest.param("http://other/1.tar?k=new", "no address of a file", id="of no file"),
        pytest.param("http://h/a/{1,1}.tar?k=new", "of several files", id="given twice"),
        pytest.param("http://h/get?k=new", "of several files", id="of one of two"),
    ],
)
def test_a_new_address_is_that_of_the_file_with_its_name_or_the_same_address(
    listed: str, found: dict[str, str] | str
) -> None:
    shards = [
        Shard(key, ShardKind.ARCHIVE, (SourceFile(f"{key}.tar", f"http://h/{place}"),))
        for key, place in PLACES.items()
    ]
    plan = RunBuilder(*shards, source=SourceRef(SourceKind.URL, "http://h/a/1.tar")).plan
    locators = [each.locator for each in url_lists.parse_url_list(listed)]
    if isinstance(found, dict):
        assert url_lists.renewed(plan, locators) == found
        return
    with pytest.raises(SourceError, match=found) as error:
        url_lists.renewed(plan, locators)
    assert "k=new" not in error.value.message


def test_only_files_from_urls_have_new_addresses() -> None:
    with pytest.raises(SourceError, match="no address of a file"):
        url_lists.renewed(RunBuilder(1).plan, ["http://h/a.tar"])
