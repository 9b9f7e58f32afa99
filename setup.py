"""The one thing that setup.cfg cannot say: an optional extension, left out without a compiler."""

from setuptools import Extension, setup

setup(ext_modules=[Extension("jobs._speedups", ["jobs/_speedups.c"], optional=True)])
