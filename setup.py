"""The one thing that setup.cfg cannot say: an optional extension, left out without a compiler."""

import zlib
from pathlib import Path

from setuptools import Extension, setup

SOURCE = "jobs/_speedups.c"
crc32 = zlib.crc32((Path(__file__).parent / SOURCE).read_bytes())
macros = [("SOURCE_CRC32", f"{crc32}L")]

setup(ext_modules=[Extension("jobs._speedups", [SOURCE], define_macros=macros, optional=True)])
