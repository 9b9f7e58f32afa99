"""Probes the machine or the cluster before a long run.

``checks`` are made on the login node, one finding each; ``node_probe`` runs on a compute node;
``node_environment`` is the Python environment of tasks, and ``site_profile`` writes a settings file
of what was found.
"""
