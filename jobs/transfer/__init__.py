"""Ranged, resumable, verified HTTP: what the rest of the program sees of it."""

from jobs.transfer.arrivals import Arrivals, StartedOver
from jobs.transfer.target import Received, Target, origin_of, redact
from jobs.transfer.transfer import Transfer

__all__ = ["Arrivals", "Received", "StartedOver", "Target", "Transfer", "origin_of", "redact"]
