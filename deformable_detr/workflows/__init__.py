"""Training, evaluation, prediction, explanation and reports as functions without a terminal."""
