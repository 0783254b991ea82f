"""Time deformable attention: all implementations, in child processes, interleaved."""
