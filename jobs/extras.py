"""Libraries that not every Python has: packages of the extras of ``setup.cfg``, decompressors."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

from jobs.errors import UsageError


class Extra(NamedTuple):
    """A package that only some runs need."""

    name: str  # in ``setup.cfg``
    package: str
    module: str  # that it provides
    what: str  # needs it

    def missing(self) -> UsageError:
        """The error if it is not installed."""
        return UsageError(
            f"{self.what} needs the package {self.package}, which is not installed; run `pip "
            f"install 'websight-orchestrate[{self.name}]'` in this environment, then try again"
        )

    def is_installed(self) -> bool:
        """Whether this Python finds it; does not import it."""
        from importlib.util import find_spec

        try:
            return find_spec(self.module) is not None
        except ModuleNotFoundError:  # of the package around it
            return False


DECODE = Extra("decode", "Pillow", "PIL", "--verify decode")
PARQUET = Extra("parquet", "pyarrow", "pyarrow", "a parquet file")
BLAKE3 = Extra("blake3", "blake3", "blake3", "--digest blake3")
CRC = Extra("cloud", "anycrc", "anycrc", "the checksum that the object store publishes")
S3 = Extra("cloud", "botocore", "botocore", "an s3:// URL")
GCS = Extra("cloud", "google-auth", "google.auth", "a gs:// URL")
AZURE = Extra("cloud", "azure-storage-blob", "azure.storage.blob", "an az:// URL")


def decompressor(name: str) -> ModuleType:
    """The module for ``bz2``, ``lzma`` (also xz) or ``zstd``; imported when it is needed.

    zstd has a backport before Python 3.14. A Python that was built where a library had no headers
    lacks its module: ``UsageError``.
    """
    module = name
    if name == "zstd":
        module = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        return import_module(module)
    except ImportError as error:
        raise UsageError(
            f"{sys.executable} cannot read {name}: it lacks the module {module} ({error}); make "
            "the environment with a Python that has it, such as the system's or conda's, then run "
            "`resume`"
        ) from error


def zstd() -> ModuleType:
    """The module for zstd."""
    return decompressor("zstd")
