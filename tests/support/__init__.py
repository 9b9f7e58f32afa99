"""Real parts for tests, and what runs the command line as a user does (``cli``).

``builders`` make runs in any state, ``servers`` are a Hub and a web server with faults,
``cluster`` is a private Slurm, ``archives`` writes archives byte by byte, ``faults`` ends processes
at a chosen moment. ``memory`` keeps the forks of a test process cheap.
"""
