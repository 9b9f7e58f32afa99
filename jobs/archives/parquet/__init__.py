"""Parquet files with pictures in them.

``archive`` is the reader that the registry opens; ``columns`` says which columns hold pictures and
makes files and a record of a row.
"""
