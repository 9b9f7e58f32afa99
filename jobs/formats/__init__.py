"""What a file is, by the ending of its name and by its first bytes.

``magic`` knows archives and compressions, ``pictures`` knows images, ``json_text`` knows where
values of JSON begin and end, ``tar_header`` is the one header of a tar member.
"""
