"""Readers of archives: an extension point.

``base`` is the interface of a reader and ``registry`` opens the right one: ``tar``, ``zip``,
``parquet``, ``single_file`` or ``folder``. ``detect`` finds the format from the first bytes.
``nested`` opens archives inside an archive, ``webdataset`` makes records of samples and
``made_records`` stores records that a reader makes. They share these modules: ``streams``,
``decompress`` and ``zstd`` read the bytes, ``limits`` and ``memory`` bound them, and
``member_names`` compares names within one archive.

A new format is one module or package here, a member of ``jobs.model.Format``, its ``Packing`` in
``jobs.formats.magic``, a branch in ``detect.sniff`` and one in ``registry``, ``_is_container`` in
``jobs.sources.shard_selection``, and one writer in ``tests/contract/test_archives.py``. A new
compression is two members of ``Format`` (with and without a tar), its ``Packing``, a row of
``_COMPRESSED`` in ``detect``, a branch of ``decompress.inflated``, and one writer.
"""
