"""Postprocessing, COCO evaluation and error analysis."""
