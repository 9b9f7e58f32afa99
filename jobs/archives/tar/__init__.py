"""Tar archives, plain or compressed.

``archive`` is the reader that the registry opens; ``stream`` reads a tar once from front to back,
part by part, while its bytes still arrive, and ``plain_copy`` keeps the decompressed form
meanwhile. ``reader`` gives the members of a stream over a ``cursor``, with ``scan`` for ordinary
files of one block, found all at once, and ``sparse`` for files with holes; ``member_index``
collects where parts are to be cut.
"""
