"""The engine that runs tasks on this machine.

``engine`` implements submitit's protocol with ``pool``, a bounded pool of processes, which start in
``child``; ``process_records`` are files from which other processes read their states.
"""
