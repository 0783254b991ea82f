"""Data sets of the user: preparation for a run, conversion and splitting."""
