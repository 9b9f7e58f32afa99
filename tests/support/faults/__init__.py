"""Faults at a chosen call that changes a file: a kill, a stop, an error of the disk.

``forkfaults``: the one injector, a ``Fault`` in a kind of process; ``forkshop``: runs commands and
stages in forks with a fault; ``matrix``: what must hold after it; ``preloaded``: what forks import;
``slow_files``: a file system that takes long for each file; ``closed``: a folder of
another user, a full disk.
"""
