"""Formats of files, from the endings of their names and their first bytes.

``magic`` detects archives and compressions, ``pictures`` images; ``json_text`` finds where JSON
values begin and end, ``tar_header`` parses headers of a tar.
"""
