"""Checks a published dataset against its receipt and manifest, at any time and by anyone.

``dataset`` is the whole check, ``slices`` the check of one slice of the manifest, ``processes``
shares the slices out to forks, ``array`` to tasks of an engine.
"""
