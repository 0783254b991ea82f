"""Shapes of a batch at each step through the system."""

import torch
from helpers.coco_files import write_coco_set
from helpers.models import small_detector
from PIL import Image

from deformable_detr.builders import build_criterion
from deformable_detr.config import RunConfig
from deformable_detr.data.coco import CocoDataset
from deformable_detr.data.collate import collate
from deformable_detr.data.samplers import SampleKey
from deformable_detr.data.transformed import TransformedDataset
from deformable_detr.data.transforms import Resize
from deformable_detr.evaluation.postprocess import select_detections
from deformable_detr.visualize.objects import draw_detections

N, C, L, Q = 2, 64, 4, 10


def test_a_batch_has_the_expected_shape_at_each_step(tmp_path):
    files = write_coco_set(tmp_path, num_images=2, size=(96, 128))
    dataset = CocoDataset(files.images, files.annotations)
    K = dataset.label_space.num_classes

    sample = dataset[0]
    T = len(sample.labels)
    assert isinstance(sample.image, Image.Image)
    assert sample.boxes_xyxy.shape == (T, 4)
    assert sample.original_size == (96, 128)

    transformed = TransformedDataset(dataset, Resize(72, 200), seed=0)
    image, target = transformed[SampleKey(0, 0)]
    assert image.shape == (3, 72, 96)
    assert target.boxes.shape == (T, 4)
    assert ((target.boxes >= 0) & (target.boxes <= 1)).all()

    batch = collate([transformed[SampleKey(0, index)] for index in range(N)])
    assert batch.images.images.shape == (N, 3, 72, 96)
    assert batch.images.padding_mask.shape == (N, 72, 96)
    assert len(batch.targets) == N

    detector = small_detector("two_stage", num_classes=K)
    features = detector.backbone(batch.images.images)
    assert [tuple(f.shape) for f in features] == [
        (N, 128, 9, 12),
        (N, 256, 5, 6),
        (N, 512, 3, 3),
    ]

    pyramid = detector.neck(features, batch.images.padding_mask)
    level_shapes = ((9, 12), (5, 6), (3, 3), (2, 2))
    S = sum(height * width for height, width in level_shapes)
    assert [tuple(m.shape) for m in pyramid.maps] == [(N, C, h, w) for h, w in level_shapes]
    assert [tuple(m.shape) for m in pyramid.padding_masks] == [(N, h, w) for h, w in level_shapes]

    position = detector.memory_builder.position(pyramid.padding_masks[0])
    assert position.shape == (N, C, 9, 12)

    memory = detector.memory_builder(pyramid)
    encoded = detector.encoder(memory)
    for stage in (memory, encoded):
        assert stage.tokens.shape == stage.positions.shape == (N, S, C)
        assert stage.padding_mask.shape == (N, S)
        assert stage.level_shapes == level_shapes
        assert stage.valid_ratios.shape == (N, L, 2)

    queries, proposals = detector.queries(encoded)
    assert queries.query.shape == queries.query_pos.shape == (N, Q, C)
    assert queries.reference_points.shape == (N, Q, 4)
    assert proposals.logits.shape == (N, S, K)
    assert proposals.boxes.shape == (N, S, 4)

    layers = detector.decoder(queries, encoded)
    assert len(layers) == 3
    for predictions in layers:
        assert predictions.logits.shape == (N, Q, K)
        assert predictions.boxes.shape == (N, Q, 4)

    output = detector(batch.images)
    assert len(output.auxiliary) == 2

    result = build_criterion(RunConfig())(output, batch.targets, 1.0)
    assert len(result.last_match) == N
    for match, wanted in zip(result.last_match, batch.targets, strict=True):
        assert match.query_index.shape == match.target_index.shape == (len(wanted),)
    assert all(value.shape == () for value in result.losses.values())

    sizes = [wanted.original_size for wanted in batch.targets]
    found = select_detections(output.last, sizes)
    R = min(100, Q * K)
    assert len(found) == N
    assert found[0].scores.shape == found[0].labels.shape == (R,)
    assert found[0].boxes_xyxy.shape == (R, 4)

    picture = draw_detections(sample.image, found[0], dataset.label_space)
    assert picture.width * 96 == picture.height * 128
    assert torch.isfinite(found[0].boxes_xyxy).all()
