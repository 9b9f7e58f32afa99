"""What a download reports of a file, to the process that extracts it meanwhile."""

from __future__ import annotations

from jobs.extract.arriving import Feed
from jobs.extract.messages import Arrived

MIB = 1 << 20


def test_a_feed_wants_the_end_of_a_zip_and_what_its_receivers_wait_for() -> None:
    feed = Feed(0, tail_first=True)
    size = 1 << 30
    feed.begin(0)
    assert feed.wanted(size) == ((size - (8 << 20), size),)
    feed.want(5, 9)
    assert feed.wanted(size)[1:] == ((5, 9),)
    feed.begin(0)
    assert len(feed.wanted(size)) == 1
    assert Feed(0).wanted(size) == ()


def test_a_transfer_that_failed_before_anybody_read_is_not_waited_for() -> None:
    feed = Feed(0)
    feed.fail()
    heard: list[Arrived] = []
    feed.attach(heard.append)
    assert [news.failed for news in heard] == [True]


def test_news_is_sent_for_every_mebibyte_and_for_a_gap_that_was_closed() -> None:
    """Whoever waits for the gap reads nothing, so that a full window would wait for ever."""
    heard: list[Arrived] = []
    feed = Feed(0)
    feed.begin(0)
    feed.attach(heard.append)
    heard.clear()
    for arrived in (
        [(0, MIB - 1)],  # too little to report
        [(0, 10), (100, 3 * MIB)],
        [(0, 50), (100, 3 * MIB)],
        [(0, 3 * MIB)],
        [(0, 3 * MIB + 10)],
    ):
        feed.advance(arrived, 4 * MIB)
    assert [news.arrived for news in heard] == [((0, 10), (100, 3 * MIB)), ((0, 3 * MIB),)]


def test_what_was_consumed_of_a_transfer_that_started_over_does_not_count() -> None:
    feed = Feed(0)
    feed.begin(0)
    feed.note_consumed(1, 100)
    assert feed.consumed() == 100
    feed.begin(0)
    feed.note_consumed(1, 200)
    assert feed.consumed() == 0
