"""The sources there are."""
