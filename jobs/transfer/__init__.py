"""HTTP transfers: ranged, resumable and verified.

``transfer`` fetches a file: it goes on from what is there, has every missing range fetched, and
verifies the whole; ``download_state`` is what it knows of it, ``session`` what all files share.
``scheduler`` shares the missing ranges out to connections, ``range_request`` makes one request for
a ``target``, ``responses`` says what an answer means, ``connection`` puts it on the wire, and
``rate_limits`` says when to ask again and how fast. ``partial_file`` and ``ranges`` are what is on
disk already; ``ordered_bytes`` hands the bytes to a reader as they arrive.
"""
