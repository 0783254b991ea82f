"""Deformable kernels."""
