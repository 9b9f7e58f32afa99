"""Readers of archives: an extension point.

``base`` is the interface of a reader and ``registry`` opens the right one: ``tar``, ``zip``,
``parquet``, ``single_file`` or ``folder``. ``detect`` finds the format from the first bytes.
``nested`` opens archives inside an archive, and ``webdataset`` makes records of samples. They share
these modules: ``streams`` and ``decompress`` read the bytes, ``limits`` bounds them and the memory,
and ``member_index`` collects what all members of an archive show together.

``docs/architecture.md`` (extension points) lists every place that a new format or compression is
added to. ``single_file`` and ``folder`` are the shortest readers. Only ``tar`` and ``zip`` can be
read while they arrive; archives of other formats are extracted once they are complete.
"""
