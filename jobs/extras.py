"""Libraries that not every Python has: the packages of the extras of ``setup.cfg``, and zstd."""

from __future__ import annotations

import sys
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
S3 = Extra("cloud", "botocore", "botocore", "an s3:// URL")
GCS = Extra("cloud", "google-auth", "google.auth", "a gs:// URL")
AZURE = Extra("cloud", "azure-storage-blob", "azure.storage.blob", "an az:// URL")


def zstd() -> ModuleType:
    """Python's module for zstd, or its backport before Python 3.14; imported when it is needed."""
    if sys.version_info >= (3, 14):
        from compression import zstd
    else:
        from backports import zstd
    return zstd
