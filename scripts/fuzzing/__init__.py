"""Hostile inputs, and the worker processes that try them; see `fuzz_inputs.py`."""
