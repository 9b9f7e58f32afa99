"""Real parts for tests: a private Slurm, a Hub, a faulty web server, sample datasets."""
