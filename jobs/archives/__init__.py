"""The archives there are."""
