"""Interruptions of commands that write; see `check_interruptions.py`."""
