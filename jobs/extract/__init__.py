"""The extract stage: each part of an archive read once, checked, hashed and written in place.

``stage`` runs it. ``extractor`` is the parent of the processes that extract and survives their end,
``child_process`` is such a process, ``messages`` is what the two send each other, ``arriving`` a
file of which more comes while it is read. ``streaming`` extracts a whole shard in one pass;
``part_result`` turns all that happens to a part into a result; ``part`` is the pass over one part:
``source`` is what it reads, ``paths`` says where a member goes, ``content`` checks and hashes it,
``links`` are members that stand for others.
"""
