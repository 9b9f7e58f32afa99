"""Readers of archives: a plug point.

``base`` says what a reader promises and ``registry`` opens the right one: ``tar``, ``zip``,
``parquet``, ``single_file`` or ``folder``. ``detect`` tells formats apart by their bytes.
``nested`` opens archives inside an archive, ``webdataset`` makes records of samples and
``made_records`` keeps records that a reader makes. What they share: ``streams``, ``decompress`` and
``zstd`` give the bytes, ``limits`` and ``memory`` bound them, and ``member_names`` compares names
within one archive. A new format is one module or package here, one line in ``registry``, its
signature in ``detect``, and one writer in ``tests/contract/test_archives.py``.
"""
