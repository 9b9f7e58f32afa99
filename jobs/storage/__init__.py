"""What is written to disk, and under which names.

``run_folder`` and ``staging`` name every file of a run and of a destination; ``manifest`` and
``folder_listing`` are the two lists of files; ``safe_paths`` says which names of an archive may be
written. ``atomic`` replaces files whole, ``write_behind`` writes out while data comes, and
``digest`` makes hashes.
"""
