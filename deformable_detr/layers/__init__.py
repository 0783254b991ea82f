"""Blocks that know nothing of detection."""
