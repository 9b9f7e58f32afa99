"""Checks of a member's content while it passes: a plug point.

``base`` says what a check promises and ``registry`` picks the one for a member: ``images`` (what
the first bytes are), ``png``, ``jpeg``, ``boxes``, ``other_images`` (structure), ``decode`` (every
pixel, by Pillow). ``records`` reads the lines of a records file.
"""
