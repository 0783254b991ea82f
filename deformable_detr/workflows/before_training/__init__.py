"""Steps of `train` before the first training step: warnings, and settings that are measured."""
