"""Writing of a dataset: an extension point, with one form so far.

``files`` writes members below the data folder, never through a link, with permissions and times;
``write_pool`` writes them inline while the disk is fast and in threads while it is slow.
"""
