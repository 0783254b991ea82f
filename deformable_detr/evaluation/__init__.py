"""From predictions to detections, average precision and an analysis of errors."""
