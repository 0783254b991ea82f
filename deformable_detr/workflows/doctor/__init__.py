"""What `deformable-detr doctor` does: installation, data set, checkpoint, failure bundle."""
