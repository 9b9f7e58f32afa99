"""The first lines of what squeue and sacct print, as Slurm 22.05, 24.11 and 26.05 print them."""

QUEUE_HEAD = (
    "JOBID|STATE|REASON|NODELIST|RESTART_COUNT|EXIT_CODE|DERIVED_EC|"
    "SUBMIT_TIME|START_TIME|END_TIME|COMMAND|WORK_DIR|NAME|"
)
ACCOUNT_HEAD = (
    "JobID|State|Reason|NodeList|ExitCode|DerivedExitCode|"
    "Submit|Start|End|TotalCPU|MaxRSS|WorkDir|JobName"
)
EMPTY_QUEUE = f"echo '{QUEUE_HEAD}'"
"""A stand-in for squeue, as a line of shell, where no job is known."""
