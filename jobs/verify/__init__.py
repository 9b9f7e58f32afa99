"""Checks a published dataset against its receipt and manifest, at any time and by anyone.

``dataset`` is the complete check, in forked processes or in the tasks of an array; ``slices`` is
the check of one slice of the manifest.
"""
