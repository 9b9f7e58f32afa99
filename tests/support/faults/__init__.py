"""Faults at a chosen moment: a kill, an error of the disk, a stop."""
