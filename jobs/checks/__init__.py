"""The checks there are."""
