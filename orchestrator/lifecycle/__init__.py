"""What changes a run, from the request to the published dataset.

``request`` is what a user asks for, ``planning`` makes it a plan, ``preflight`` says what must hold
before anything is submitted, ``space`` whether archives and data have room, ``claim`` holds the
destination. ``launching``, ``resuming`` and ``verifying`` are the commands; ``running`` carries a
run on, ``recovery`` finds what is left to be done, ``submission`` hands a chain of jobs to an
engine.
"""
