"""A Hub and a web server of our own, and what can be wrong with an answer."""
