"""Checks of a member's content during extraction: an extension point.

``base`` is the interface of a check, with the check of the first bytes that all files get, and
``registry`` chooses the one for a member: ``png``, ``jpeg``, ``boxes``, ``other_images``
(structure), ``decode`` (all pixels, with Pillow). ``records`` parses the lines of a records file.
"""
