"""Checks a published dataset against its receipt and manifest, at any time and by anyone.

``dataset`` is the complete check, in forked processes, ``slices`` the check of one slice of the
manifest. ``array`` distributes the slices over tasks of an engine.
"""
