"""Engines, which run tasks: an extension point.

``base`` is the interface of an engine and ``registry`` chooses one: ``slurm`` or ``local``.
``task_process`` is the process of a task on Slurm, ``task_entry`` the function that every engine
calls on a node, and ``pickled`` writes and reads submitit's files of a task.
"""
