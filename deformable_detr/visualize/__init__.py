"""Pictures of detections, and of what a detector attends to."""
