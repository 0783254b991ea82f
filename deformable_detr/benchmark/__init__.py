"""Benchmarks of operators, layers and training on this machine: `deformable-detr benchmark`."""
