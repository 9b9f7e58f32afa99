"""Sources of datasets: an extension point.

``base`` is the interface of a source and ``registry`` opens the right one: ``hub``, ``url``,
``doi``, ``object_store`` or ``local``. They share these modules: ``shard_selection`` makes shards
of files, ``file_names`` interprets names, ``families`` and ``split_archives`` find the pieces of an
archive, ``http_probe`` sends small requests, ``hub_client`` wraps the Hub's client, ``url_lists``
parses lists of addresses, ``doi_records`` reads the record of a DOI, ``object_urls`` has the
addresses of objects and the interface of a store's client: ``s3``, ``gcs`` or ``azure_blobs``.

``docs/architecture.md`` (extension points) lists every place that a new source is added to.
"""
