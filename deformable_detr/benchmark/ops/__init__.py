"""Time deformable attention: all implementations, in child processes, in turns."""
