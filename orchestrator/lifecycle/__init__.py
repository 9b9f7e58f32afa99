"""Everything that changes a run, from the request to the published dataset.

``request`` is the user's request, ``planning`` makes a plan of it, ``preflight`` checks everything
before anything is submitted, ``space`` checks the disk space, ``claim`` reserves the destination.
``launching``, ``resuming``, ``cancelling``, ``updating`` and ``verifying`` are the commands;
``recovery`` finds the unfinished work that a resume submits, ``submitting`` submits chains of jobs
and makes automatic retries.
"""
