"""The plan, the jobs and the command line: what runs on the login node."""

from jobs import __version__

__all__ = ["__version__"]
