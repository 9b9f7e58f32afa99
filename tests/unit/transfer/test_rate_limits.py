"""A rate for all connections together."""

from __future__ import annotations

import threading
import time

import pytest

from jobs.transfer.rate_limits import RateLimit


def test_a_rate_is_that_of_all_connections_together() -> None:
    rate = RateLimit(1_000_000)
    waited: list[float] = []

    def spend() -> None:
        for _ in range(10):
            rate.spend(50_000, waited.append)

    threads = [threading.Thread(target=spend) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # Two million bytes are due after two seconds, less the burst, whoever spends them.
    assert 1.5 < max(waited) < 2.1
    assert rate.chunk <= 50_000


def test_what_was_not_used_for_a_while_is_not_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    rate = RateLimit(1_000_000)
    now = time.monotonic() + 3600
    monkeypatch.setattr(time, "monotonic", lambda: now)
    waited: list[float] = []
    rate.spend(5_000_000, waited.append)
    assert waited and waited[0] > 4
