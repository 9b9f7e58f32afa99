"""Checks a published dataset against its receipt and manifest, at any time and by anyone.

``dataset`` is the complete check, ``slices`` the check of one slice of the manifest. ``processes``
distributes the slices over forked processes, ``array`` over tasks of an engine.
"""
