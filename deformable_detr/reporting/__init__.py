"""HTML report of a run: training curves, error analysis and configuration."""
