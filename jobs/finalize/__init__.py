"""The last stage: audits what the parts wrote, merges the records, publishes everything or nothing.

``stage`` runs it over one ``context``. ``record_files`` finds the records, ``record_forms`` reads
and writes their forms, ``record_paths`` finds the file that a record's path means. ``scan`` reads
manifests, the staged folder and the records into ``disk_partitions``; ``cross_check`` compares all
rows of one path; ``findings`` collects what is wrong; ``collisions`` restores the right bytes of a
path that several archives wrote. ``merge`` writes records, manifest and sums, ``pack`` shards
instead of files, with the ``shard_members`` in their order, ``receipt`` the receipt; ``publish``
renames everything into place, ``cleanup`` removes what is no longer needed.
``repair`` extracts damaged parts of a published dataset again; ``carrying`` finds what an update
can take from it.
"""
