"""Where datasets come from: a plug point.

``base`` says what a source promises and ``registry`` opens the right one: ``hub``, ``url``, ``doi``
or ``local``. What they share: ``shard_selection`` makes shards of files, ``file_names`` says what a
name promises, ``families`` and ``split_archives`` find the pieces of one archive, ``http_probe``
asks servers small questions, ``hub_client`` is the Hub's own client, ``url_lists`` reads lists of
addresses, ``doi_records`` reads what repositories say of a DOI. A new source is one module here,
one line in ``registry`` and one subclass in ``tests/contract/test_sources.py``.
"""
