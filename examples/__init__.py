"""Programs and files to start from, and ``samples``, which makes datasets to try them with."""
