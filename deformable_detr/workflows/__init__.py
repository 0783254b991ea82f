"""Python API: training, evaluation, prediction, explanation and reports as functions."""
