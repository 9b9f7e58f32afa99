"""What runs tasks: a plug point.

``base`` says what an engine promises and ``registry`` gives the right one: ``slurm`` or ``local``.
``task_entry`` is what every engine calls on a node, and ``pickled`` reads what submitit keeps of a
task.
"""
