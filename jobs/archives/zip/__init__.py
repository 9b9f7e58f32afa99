"""Zip archives.

``archive`` is the reader that the registry opens; ``directory`` finds and checks the central
directory, ``entry`` is one record of it with its local header, ``content`` decompresses it.
"""
