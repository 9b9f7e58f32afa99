"""Checks the machine or the cluster before a long run.

``checks`` run on the login node; ``node_probe`` runs on a compute node; ``node_environment`` checks
and creates the Python environment of tasks, and ``site_profile`` writes a settings file.
"""
