import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from deformable_detr.boxes import (
    clip_xyxy,
    cxcywh_to_xyxy,
    giou_xyxy,
    inverse_sigmoid,
    iou_xyxy,
    xywh_to_xyxy,
    xyxy_to_cxcywh,
    xyxy_to_xywh,
)


@st.composite
def boxes_xyxy(draw, *, max_count=6):
    count = draw(st.integers(1, max_count))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = torch.Generator().manual_seed(seed)
    corner = 100 * torch.rand(count, 2, generator=generator, dtype=torch.float64) - 20
    size = 60 * torch.rand(count, 2, generator=generator, dtype=torch.float64) + 0.1
    return torch.cat((corner, corner + size), dim=1)


@given(boxes_xyxy())
def test_conversions_invert_and_equal_torchvision(boxes):
    torch.testing.assert_close(cxcywh_to_xyxy(xyxy_to_cxcywh(boxes)), boxes)
    torch.testing.assert_close(xywh_to_xyxy(xyxy_to_xywh(boxes)), boxes)
    torch.testing.assert_close(xyxy_to_cxcywh(boxes), box_convert(boxes, "xyxy", "cxcywh"))
    torch.testing.assert_close(xyxy_to_xywh(boxes), box_convert(boxes, "xyxy", "xywh"))


@given(boxes_xyxy(), boxes_xyxy())
def test_overlaps_equal_torchvision(first, second):
    pair = first[:, None], second[None]
    torch.testing.assert_close(iou_xyxy(*pair), box_iou(first, second))
    torch.testing.assert_close(giou_xyxy(*pair), generalized_box_iou(first, second))


@given(boxes_xyxy(), boxes_xyxy())
def test_giou_is_symmetric_and_in_minus_one_to_one(first, second):
    giou = giou_xyxy(first[:, None], second[None])
    torch.testing.assert_close(giou, giou_xyxy(second[:, None], first[None]).T)
    assert (giou > -1).all()
    assert (giou <= 1 + 1e-12).all()


@given(boxes_xyxy(max_count=1), st.floats(0.01, 0.99))
def test_giou_is_iou_where_the_hull_is_the_union(box, share):
    inner = box.clone()
    inner[:, 2] = box[:, 0] + share * (box[:, 2] - box[:, 0])
    torch.testing.assert_close(giou_xyxy(box, inner), iou_xyxy(box, inner))


@given(st.floats(1e-4, 1 - 1e-4))
def test_inverse_sigmoid_inverts(probability):
    value = torch.tensor(probability, dtype=torch.float64)
    torch.testing.assert_close(inverse_sigmoid(value).sigmoid(), value)


@given(boxes_xyxy())
def test_clipped_boxes_are_inside(boxes):
    clipped = clip_xyxy(boxes, (30, 50))
    assert (clipped >= 0).all()
    assert (clipped[:, 0::2] <= 50).all()
    assert (clipped[:, 1::2] <= 30).all()
    inside = (boxes[:, :2] >= 0).all(1) & (boxes[:, 2] <= 50) & (boxes[:, 3] <= 30)
    assert torch.equal(clipped[inside], boxes[inside])
