"""The engine that hands tasks to Slurm.

``engine`` submits through submitit, asks what became of tasks and cancels them; ``queue`` is this
user's jobs on one ``cluster``. ``script`` makes a job into what sbatch needs and ``arguments`` says
what a user may add to it; ``client`` calls Slurm's commands, ``parse`` reads their answers,
``limits`` knows what this Slurm allows.
"""
