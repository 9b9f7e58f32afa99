"""How a dataset is written: a plug point, with one form so far.

``files`` puts members below the data folder, never through a link, with permissions and times;
``write_pool`` writes them inline while the disk is fast and in threads while it is slow.
"""
