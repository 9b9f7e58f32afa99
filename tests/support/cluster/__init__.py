"""A private Slurm, and what runs on it."""
