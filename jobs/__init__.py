"""The stages download, extract and finalize; they run on any node, with or without a scheduler."""

__version__ = "0.1.0"
