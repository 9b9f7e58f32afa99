"""The engine that runs tasks on this machine.

``engine`` speaks submitit's protocol through ``pool``, a bounded pool of processes, each of which
begins in ``child``; ``process_records`` is what any other process can read of them.
"""
