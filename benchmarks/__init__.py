"""Measurements, against the tools that people use."""
