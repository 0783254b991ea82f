"""Drawings of detections and of a detector's attention."""
