"""Zip archives.

``archive`` is the reader that the registry opens, also during the download, and decompresses
entries; ``directory`` finds and checks the central directory, ``entry`` is one record of it with
its local header, ``ordinary`` reads many of them at once where nothing is to be decided.
"""
