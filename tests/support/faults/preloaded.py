"""Everything that the product may import, at once, so that forks import nothing."""

from __future__ import annotations

# What functions import. A fork waits forever for a module that another thread was importing.
_IN_FUNCTIONS = (
    "backports.zstd",
    "blake3",
    "bz2",
    "deflate",
    "huggingface_hub.errors",
    "huggingface_hub.hf_api",
    "isal.igzip_lib",
    "isal.isal_zlib",
    "lz4.frame",
    "lzma",
)


def import_all() -> None:
    """Nothing is left to be imported in a fork."""
    import contextlib
    import importlib
    import pkgutil

    import requests  # noqa: F401

    import jobs
    import orchestrator
    from orchestrator.engines.task_process import without_numpy

    with without_numpy():  # as in the processes of tasks
        import submitit.core.submission  # noqa: F401
    for name in _IN_FUNCTIONS:
        with contextlib.suppress(ImportError):  # an extra, or an older Python
            importlib.import_module(name)
    for package in (jobs, orchestrator):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not found.name.endswith("__main__"):
                importlib.import_module(found.name)
