"""A run's report: one HTML page without network access and scripts.

``page`` assembles it from text, ``figures`` (numbers) and ``charts`` (SVG).
"""
