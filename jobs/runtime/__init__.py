"""What a running task needs.

``progress`` has its counters, its stop flag and its heartbeat; ``process`` identifies processes,
counts usable cores, and exchanges messages with a program that was started; ``background`` calls
functions in threads that an interrupt can abandon; ``forks`` divides work over forked processes.
"""
