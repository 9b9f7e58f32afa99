"""Everything that the product may import, at once, so that forks import nothing."""

from __future__ import annotations


def import_all() -> None:
    """Nothing is left to be imported in a fork."""
    import importlib
    import pkgutil

    import requests  # noqa: F401
    import submitit.core.submission  # noqa: F401

    import jobs
    import orchestrator

    for package in (jobs, orchestrator):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
