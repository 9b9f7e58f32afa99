"""The one thing that setup.cfg cannot say: optional extensions, left out without a compiler."""

import zlib
from pathlib import Path

from setuptools import Extension, setup

SOURCES = ("jobs/_folder_files.c", "jobs/_speedups.c", "jobs/_zip_entries.c")


def extension(source: str) -> Extension:
    """The extension with that C file, which knows its checksum."""
    crc32 = zlib.crc32((Path(__file__).parent / source).read_bytes())
    name = source.removesuffix(".c").replace("/", ".")
    macros = [("SOURCE_CRC32", f"{crc32}L")]
    return Extension(name, [source], define_macros=macros, optional=True)


setup(ext_modules=[extension(source) for source in SOURCES])
