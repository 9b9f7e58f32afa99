"""How a dataset is written: as files, or packed.

``files`` writes members below the data folder, never through a link, with permissions and times;
``write_pool`` writes them inline while the disk is fast and in threads while it is slow. ``base``
has the classes of outputs that pack files into shards, ``registry`` finds an output by its name:
``webdataset``, ``zip``, and ``squashfs``, with ``squashfs_tables``.
``published_members`` reads the members of published shards.
"""
