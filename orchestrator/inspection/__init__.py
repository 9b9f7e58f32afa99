"""What only reads a run.

``evidence`` gathers all that is known of a run, once; ``state`` judges it, purely. ``metrics`` are
the figures of a state (counts, rates, what waits, which nodes fail), ``status_json`` is the object
that programs read, ``pending_reasons`` says in words why Slurm lets a job wait. ``journal`` is the
run's event log, ``run_list`` finds runs, ``task_logs`` finds and cleans tasks' logs. ``run`` is a
run as programs hold it, with its ``futures``.
"""
