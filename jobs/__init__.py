"""The work itself: download, extract, finalize; runs on any node, with or without a scheduler."""

__version__ = "0.1.0"
