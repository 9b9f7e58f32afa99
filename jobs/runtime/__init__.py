"""What a running task stands on.

``progress`` holds its counters, its stop flag and its heartbeat; ``process`` says which process
this is and how many cores it may use; ``background`` calls functions in threads that an interrupt
can leave behind.
"""
