"""Tar archives, plain or compressed.

``archive`` is the reader that the registry opens. ``stream`` reads a tar once from start to end,
part by part, perhaps while it arrives, and ``blocks`` are its bytes on the way. ``reader``
yields the members of a stream over a ``cursor``, with ``sparse`` for files with holes.
"""
