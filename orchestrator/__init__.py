"""What runs on the login node: planning, submitting jobs, and the command line."""

from jobs import __version__

__all__ = ["__version__"]
