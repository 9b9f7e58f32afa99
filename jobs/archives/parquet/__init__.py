"""Parquet files that contain pictures.

``archive`` has the readers that the registry opens, of a complete file and of one that is being
downloaded; ``columns`` finds the columns with pictures, converts a row to files and a record, and
counts the numbers that JSON does not have; ``values`` converts columns to Python values, and tells
damage from what pyarrow does not support.
"""
