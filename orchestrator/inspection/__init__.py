"""Everything that only reads a run.

``evidence`` reads all that is known of a run, once; ``state`` computes its state from that, as a
pure function, and ``task_ends`` why tasks ended as only their engine knows. ``metrics`` are numbers
of a state (counts, rates, waiting tasks, failing nodes), ``problem_groups`` are its problems by
cause, ``status_json`` is the object for programs, ``pending_reasons`` explains Slurm's reasons for
waiting. ``event_log`` is ``events.jsonl``, ``run_list`` finds runs, ``task_logs`` finds and cleans
tasks' logs, ``futures`` are a run's tasks for programs.
"""
