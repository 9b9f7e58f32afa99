"""A run's report: one HTML page that asks nothing of the network and needs no script.

``page`` puts it together of text, ``figures`` (numbers) and ``charts`` (SVG).
"""
