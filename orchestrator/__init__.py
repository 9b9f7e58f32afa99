"""The plan, the jobs and the command line: what runs on the login node."""

__version__ = "0.1.0"
