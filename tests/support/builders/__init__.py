"""What tests start from.

``runs``: the builder of runs, in any state; ``made_run``: what it makes on disk;
``complete_run``: a run from command line options, in this process; ``contents``: what archives
hold; ``fake_engine``: an engine that records jobs.
"""
