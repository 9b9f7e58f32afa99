"""The extract stage: reads each part of an archive once, and checks, hashes and writes its members.

``stage`` runs it. ``extractor`` starts the processes that extract and handles their crashes,
``child_process`` is such a process, and turns everything that can happen to a part into a result;
``messages`` defines what the two send each other, ``arriving`` is a file that is read while it is
downloaded. ``streaming`` extracts a complete shard in one pass. ``part`` is the pass over one part:
``part_job`` is what it reads, ``paths`` maps members to paths, ``content`` checks and hashes them,
``part_writer`` lists them in the manifest, ``targets`` writes them to files or to one container,
``links`` writes the content of links. ``carried`` takes a part's files from the dataset that an
update replaces.
"""
