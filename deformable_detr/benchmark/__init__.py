"""How fast the operators are on this machine: `deformable-detr benchmark ops`."""
