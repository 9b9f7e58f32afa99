"""What a person sees of a run.

``status_screen`` is the screen of ``status`` and ``live`` draws it again and again; ``run_table``
is the list of runs, ``log_output`` shows and follows logs, ``report`` is the HTML page.
``terminal`` knows what the stream before us can show.
"""
