"""The engine that runs tasks on this machine.

``engine`` implements submitit's protocol with ``pool``, a bounded pool of processes; they are forks
of ``task_starter``, a process that has imported their code, which ``starter_process`` starts.
``process_records`` are files from which other processes read the states of tasks.
"""
