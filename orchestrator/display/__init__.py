"""The display of runs.

``status_screen`` is the screen of ``status``; ``log_output`` shows and follows logs; ``report`` is
the HTML page, whose numbers ``report_figures`` computes. ``terminal`` detects what an output stream
can show.
"""
