"""What a running task needs.

``progress`` has its counters, its stop flag and its heartbeat; ``process`` identifies processes and
counts usable cores; ``background`` calls functions in threads that an interrupt can abandon;
``forks`` divides work over forked processes; ``messages`` are what a process and a program that it
has started send each other.
"""
