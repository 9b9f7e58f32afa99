"""The last stage: audits what the parts wrote, merges the records, publishes everything or nothing.

``stage`` runs it over one ``context``. ``record_files`` finds the records, also among
``data_files``, ``record_forms`` reads and writes their forms, ``record_paths`` reads their paths,
``lost_folders`` knows which files these do not mean. ``scan`` reads manifests and the staged
folder, ``scan_records`` the records, into the rows that ``join`` brings together on disk;
``cross_check`` compares those of one path, if ``compared_rows`` finds anything to report;
``findings`` collects what is wrong; ``collisions`` restores the right bytes of a path that several
archives wrote. ``merge`` writes the records, the manifest and the sums, ``pack`` the
``packed_shards`` instead of files, except those that are finished, ``summary`` the receipt and what
finalize reports, ``merged_sets`` hints on archives whose files share folders now; ``publish``
renames everything into place, ``cleanup`` removes what is no longer needed.

``repair`` extracts damaged parts of a published dataset again; ``carrying`` finds what it, or an
update, can take from the dataset, ``published_places`` where that is in its shards, and which of
its files were replaced by others.
"""
