"""Outlines of crops in the report."""

import numpy as np

from deformable_detr.reporting import gallery


def test_of_equal_boxes_the_last_one_is_drawn() -> None:
    boxes = np.array([[1.0, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4], [0, 0, 1, 1], [5, 6, 7, 8]])
    assert gallery._distinct(boxes).tolist() == [[1, 2, 3, 4], [0, 0, 1, 1], [5, 6, 7, 8]]
    assert len(gallery._distinct(np.zeros((0, 4)))) == 0
