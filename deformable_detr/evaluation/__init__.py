"""From predictions to detections, average precision and pictures."""
