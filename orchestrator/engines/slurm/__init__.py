"""The engine that submits tasks to Slurm.

``engine`` submits through submitit, polls tasks and cancels them; ``cluster`` identifies a cluster
and queries this user's jobs on it. ``script`` makes the batch script of a job and ``arguments``
checks what a user adds to it; ``client`` calls Slurm's commands, ``parse`` parses their output,
``limits`` reads limits.
"""
