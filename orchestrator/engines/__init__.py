"""Engines, which run tasks: an extension point.

``base`` is the interface of an engine and ``registry`` chooses one: ``slurm`` or ``local``.
``task_entry`` is a task as submitit runs it on either, and ``task_process`` its process on Slurm.
"""
