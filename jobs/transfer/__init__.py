"""Ranged, resumable, verified HTTP: what the rest of the program sees of it.

From the ground up: an address (``target``), byte ranges (``ranges``), waits (``pace``), what
answers mean (``answers``, ``coding``), what is there (``partial``, ``hashing``, ``arrivals``), one
GET (``wire``), what all fetches share (``shared``), a file in the making (``draft``), one request
(``attempt``), all requests for a file (``pieces``), and the whole (``transfer``).
"""

from jobs.transfer.arrivals import Arrivals, Listener, StartedOver
from jobs.transfer.target import Received, Target, origin_of, redact
from jobs.transfer.transfer import Transfer

__all__ = [
    "Arrivals",
    "Listener",
    "Received",
    "StartedOver",
    "Target",
    "Transfer",
    "origin_of",
    "redact",
]
