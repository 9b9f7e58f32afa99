"""HTTP transfers: ranged, resumable and verified.

``transfer`` downloads a file: it continues a partial file, fetches all missing ranges, and verifies
the result. ``download_state`` is its state, ``session`` what all files share. ``scheduler``
distributes missing ranges to connections, ``range_request`` makes one request for a ``target``,
``responses`` interprets responses, ``connection`` sends requests and explains why one failed, and
``rate_limits`` computes pauses and rates. ``partial_file`` and ``ranges`` track what is on disk,
and where it is, of a file that is too large to be stored; ``ordered_bytes`` passes the bytes to a
reader as they arrive.
"""
