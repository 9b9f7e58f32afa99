"""Archives byte by byte: raw, hostile, and read back."""
