"""Multi-scale deformable attention: back-ends and dispatch."""
