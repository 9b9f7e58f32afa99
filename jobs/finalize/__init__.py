"""The last stage: audits what the parts wrote, merges the records, publishes all or nothing.

``stage`` runs it over one ``context``. ``record_files`` finds the records, ``record_forms`` reads
and writes their forms, ``record_paths`` says which file a path in them means. ``scan`` reads
manifests, the staged folder and the records into ``disk_partitions``; ``cross_check`` judges what
meets under one path; ``findings`` says what is wrong; ``collisions`` puts the right bytes under a
contested path. ``merge`` writes records, manifest and sums, ``receipt`` the receipt; ``publish``
renames all into place, ``cleanup`` tidies up. ``repair`` does damaged parts of a published dataset
again.
"""
