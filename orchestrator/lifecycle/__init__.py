"""Everything that changes a run, from the request to the published dataset.

``request`` is the user's request, ``planning`` makes a plan of it, ``preflight`` checks everything
before anything is submitted, ``space`` checks the disk space, ``claim`` reserves the destination.
``launching``, ``resuming``, ``updating`` and ``verifying`` are the commands; ``running`` continues
a run, ``recovery`` finds unfinished work, ``amending`` changes the options of a resumed run,
``submission`` submits a chain of jobs to an engine.
"""
