"""Rate limits, back-off, and the pauses that servers request."""

from __future__ import annotations

import email.utils
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timezone

LONGEST_WAIT_S = 3600.0  # a server that requests a longer pause counts as failed
LOGGED_S = 1.0  # shorter waits are not logged
_MOST_BACKOFF_S = 60.0
_BURST_S = 0.1  # seconds of the rate that may be sent at once


def backoff_s(failures: int, base_s: float) -> float:
    """Seconds to wait after consecutive failures: exponential, with full jitter.

    https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
    """
    # The exponent is bounded so that the product does not overflow.
    return random.uniform(0, min(_MOST_BACKOFF_S, base_s * 2 ** min(failures - 1, 20)))


def retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds in ``Retry-After`` (RFC 9110, 10.2.3), or until a spent rate limit is reset."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"\d{1,9}(\.\d+)?", value):
        return float(value)
    if value:
        until = _date_s(value)
        # Use the server's clock if it sends the date: ours may differ.
        now = _date_s(headers.get("Date", "")) or time.time()
        if until is not None:
            return max(0.0, until - now)
    return None


def rate_limit_s(headers: Mapping[str, str]) -> float | None:
    """Seconds until a spent rate limit is reset; None if it is not spent.

    Reads the ``RateLimit`` field of the IETF draft (``"api";r=0;t=55``), which the Hub sends, and
    the older ``RateLimit-Remaining`` and ``-Reset``, also with ``X-``; a reset may be a time.
    """
    field = headers.get("RateLimit", "")
    waits = [
        float(match["t"])
        for match in re.finditer(r"r=(?P<r>\d{1,18})\s*;\s*t=(?P<t>\d{1,9})", field)
        if int(match["r"]) == 0
    ]
    if waits:
        return max(waits)
    for prefix in ("", "X-"):
        left = headers.get(f"{prefix}RateLimit-Remaining", "").strip()
        reset = headers.get(f"{prefix}RateLimit-Reset", "").strip()
        if left == "0" and re.fullmatch(r"\d{1,12}(\.\d+)?", reset):
            seconds = float(reset)
            return max(0.0, seconds - time.time()) if seconds > 1e9 else seconds
    return None


def _date_s(text: str) -> float | None:
    try:
        date = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError, IndexError):
        return None
    # HTTP's dates are of UTC, also in the form without a zone (RFC 9110, 5.6.7).
    return (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp()


class SitePauses:
    """Until when requests to each site are paused; shared by all connections."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}
        self._lock = threading.Lock()

    def hold(self, site: str, seconds: float) -> None:
        """Pause requests to ``site``."""
        with self._lock:
            until = time.monotonic() + seconds
            self._until[site] = max(until, self._until.get(site, 0.0))

    def left_s(self, site: str) -> float:
        """Seconds until requests to ``site`` may continue."""
        return max(0.0, self._until.get(site, 0.0) - time.monotonic())


class RateLimit:
    """A token bucket for all connections together; no limit if ``bytes_per_s`` is None."""

    def __init__(self, bytes_per_s: int | None) -> None:
        self.bytes_per_s = bytes_per_s
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    @property
    def chunk(self) -> int:
        """How many bytes to read at once, so that a low rate is steady."""
        if self.bytes_per_s is None:
            return 1 << 20
        return max(1024, min(1 << 20, self.bytes_per_s // 20))

    def spend(self, count: int, pause: Callable[[float], None]) -> None:
        """Account for ``count`` bytes, and call ``pause(seconds)`` until they are due."""
        if self.bytes_per_s is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(self._free_at, now - _BURST_S) + count / self.bytes_per_s
            wait = self._free_at - now
        if wait > 0:
            pause(wait)
