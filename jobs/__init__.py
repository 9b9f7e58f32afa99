"""The work itself: download, extract, finalize; runs on any node, with or without a scheduler."""
