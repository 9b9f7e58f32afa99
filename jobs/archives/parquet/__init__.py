"""Parquet files that contain pictures.

``archive`` is the reader that the registry opens, ``stream`` that of a file which is being
downloaded; ``columns`` finds the columns with pictures and
converts a row to files and a record; ``non_finite`` counts NaN and infinite numbers.
"""
