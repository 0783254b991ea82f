"""Checkpoints: writing, reading, and transfer of weights between detectors."""
