"""Inspection of data sets: every problem in one pass, and repairs that need no guess."""
