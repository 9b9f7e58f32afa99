"""Names and formats of files on disk, and safe ways to write them.

``run_folder`` and ``staging`` name every file of a run and of a destination; ``manifest`` and
``folder_listing`` are the two lists of files, ``receipt`` is the form of a dataset's receipt;
``safe_paths`` checks names of members, ``presence`` tells what exists. ``blocks`` reads files in
pieces, ``folder_files`` many small ones in one call; ``atomic`` replaces files atomically,
``latency`` reads ahead and flushes behind where a file system is slow, ``digest`` hashes.
"""
