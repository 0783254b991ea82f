"""Workflows of `deformable-detr doctor`: installation, data set, checkpoint, failure bundle."""
