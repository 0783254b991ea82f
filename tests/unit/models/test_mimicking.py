import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from helpers.models import make_target, small_detector
from helpers.recipe import paper_criterion
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from deformable_detr.losses.matcher import Match
from deformable_detr.losses.mimicking import mimicking_losses
from deformable_detr.models.backbones.base import Backbone
from deformable_detr.models.mimicking import FeatureMimicking, crop_boxes
from deformable_detr.structures import ImageBatch, Target


class SmallBackbone(Backbone):
    """A backbone with two maps that records its inputs."""

    def __init__(self):
        super().__init__()
        self.strides, self.channels = (8, 16), (6, 10)
        self.first = nn.Conv2d(3, 6, 8, stride=8)
        self.second = nn.Conv2d(6, 10, 2, stride=2)
        self.seen = []

    def forward(self, images):
        self.seen.append(images)
        fine = self.first(images).relu()
        return [fine, self.second(fine)]


def match(*pairs):
    queries, objects = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).unbind(1)
    return Match(queries, objects)


def two_images():
    return ImageBatch.from_images([torch.randn(3, 40, 64), torch.randn(3, 56, 48)])


def build(**settings):
    sizes = {"backbone_channels": 10, "embed_dim": 12, "num_classes": 5}
    settings = {"max_regions": 32, "crop_size_px": 32} | settings
    return FeatureMimicking(**(sizes | settings))


@pytest.mark.parametrize(("multiple", "side"), [(1, 33), (16, 48)])
def test_crops_have_a_size_that_the_backbone_takes(multiple, side):
    backbone, hidden = SmallBackbone(), torch.randn(2, 4, 12)
    backbone.multiple = multiple
    targets = [make_target(3), make_target(0, seed=1)]
    build(crop_size_px=33)(backbone, two_images(), hidden, targets, [match((2, 0)), match((0, 0))])
    assert [tuple(crops.shape) for crops in backbone.seen] == [(2, 3, side, side)]


def test_features_are_those_of_the_matched_queries_and_of_their_objects():
    backbone, images, hidden = SmallBackbone(), two_images(), torch.randn(2, 4, 12)
    mimicking = build()
    targets = [make_target(3, 1), make_target(0, 4, 2, seed=1)]
    features = mimicking(backbone, images, hidden, targets, [match((2, 1)), match((0, 2), (3, 0))])
    wanted = torch.stack((hidden[0, 2], hidden[1, 0], hidden[1, 3]))
    weight, bias = mimicking.student.weight, mimicking.student.bias
    torch.testing.assert_close(features.student, wanted @ weight.T + bias)
    assert features.labels.tolist() == [1, 2, 0]

    boxes = torch.stack((targets[0].boxes[1], targets[1].boxes[2], targets[1].boxes[0]))
    crops = crop_boxes(images, torch.tensor([0, 1, 1]), boxes, size_px=32)
    pooled = backbone(crops)[1].flatten(2).mean(2)
    first, second = mimicking.teacher.layers
    teacher = F.relu(pooled @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(features.teacher, teacher)
    classifier = mimicking.classifier
    expected = teacher.clamp(min=0) @ classifier.weight.T + classifier.bias
    torch.testing.assert_close(features.logits, expected)
    assert features.logits.shape == (3, 6)


@pytest.mark.parametrize("size", [1, 8, 16, 32])
def test_a_smaller_crop_is_the_mean_of_whole_pixels(size):
    image = torch.randn(3, 64, 128)
    images = ImageBatch.from_images([torch.zeros(3, 90, 90), image])
    box = torch.tensor([[48 / 128, 32 / 64, 32 / 128, 32 / 64]])
    crop = crop_boxes(images, torch.tensor([1]), box, size_px=size)
    expected = image[:, 16:48, 32:64].reshape(3, size, 32 // size, size, 32 // size).mean((2, 4))
    torch.testing.assert_close(crop[0], expected)


def test_a_larger_crop_is_bilinear():
    image = torch.randn(3, 64, 128)
    box = torch.tensor([[48 / 128, 32 / 64, 32 / 128, 32 / 64]])
    crop = crop_boxes(ImageBatch.from_images([image]), torch.tensor([0]), box, size_px=64)
    framed = F.interpolate(image[None, :, 15:49, 31:65], scale_factor=2, mode="bilinear")
    torch.testing.assert_close(crop, framed[:, :, 2:-2, 2:-2])


def test_a_crop_does_not_depend_on_the_padding():
    image = torch.randn(3, 30, 44)
    boxes = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.8, 0.7, 0.4, 0.6], [0.1, 0.2, 0.2, 0.4]])
    alone = ImageBatch.from_images([image])
    padded = ImageBatch.from_images([image, torch.randn(3, 64, 48)])
    index = torch.zeros(3, dtype=torch.int64)
    torch.testing.assert_close(
        crop_boxes(padded, index, boxes, size_px=64), crop_boxes(alone, index, boxes, size_px=64)
    )


def test_a_box_without_area_gives_a_finite_crop():
    box = torch.tensor([[0.5, 0.5, 0.0, 0.2], [1.0, 1.0, 0.0, 0.0]])
    crop = crop_boxes(two_images(), torch.tensor([0, 1]), box, size_px=8)
    assert crop.isfinite().all()


def test_at_most_max_regions_per_image_are_chosen_at_random():
    backbone, images, hidden = SmallBackbone(), two_images(), torch.randn(2, 40, 12)
    mimicking = build(max_regions=4)
    labels = [i % 5 for i in range(40)]
    targets = [make_target(*labels), make_target(2)]
    order = torch.randperm(40)
    matches = [Match(torch.arange(40), order), match((7, 0))]
    chosen = []
    for _ in range(20):
        features = mimicking(backbone, images, hidden, targets, matches)
        assert features.student.shape == (5, 1024)
        assert features.labels[4] == 2
        all_students = mimicking.student(hidden[0])
        distance = torch.cdist(features.student[:4], all_students)
        queries = distance.argmin(1)
        assert queries.unique().numel() == 4
        wanted = torch.tensor(labels)[order[queries]]
        assert (features.labels[:4] == wanted).all()  # queries keep their objects
        chosen.append(queries)
    assert torch.cat(chosen).unique().numel() > 20


def test_without_objects_the_backbone_is_not_run_and_all_parameters_get_gradients():
    backbone, mimicking = SmallBackbone(), build()
    targets = [make_target(), make_target()]
    features = mimicking(backbone, two_images(), torch.randn(2, 4, 12), targets, [match(), match()])
    losses = mimicking_losses(features, 1.0)
    sum(losses.values()).backward()
    assert backbone.seen == []
    assert [value.item() for value in losses.values()] == [0.0, 0.0]
    for name, parameter in mimicking.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad == 0).all(), name


def test_both_branches_the_queries_and_the_backbone_get_gradients():
    backbone, mimicking = SmallBackbone(), build()
    hidden = torch.randn(2, 4, 12, requires_grad=True)
    targets = [make_target(3, 1), make_target()]
    features = mimicking(backbone, two_images(), hidden, targets, [match((2, 1)), match()])
    mimicking_losses(features, 1.0)["loss_mimic"].backward()
    assert (hidden.grad[0, 2] != 0).all()
    assert hidden.grad.count_nonzero() == 12  # matched queries only
    for module in (mimicking.student, mimicking.teacher, backbone):
        for name, parameter in module.named_parameters():
            assert parameter.grad.count_nonzero() > 0, name


def test_eval_mode_raises():
    arguments = (SmallBackbone(), two_images(), torch.randn(2, 4, 12))
    with pytest.raises(RuntimeError, match="feature mimicking must only run in training"):
        build().eval()(*arguments, [make_target(), make_target()], [match(), match()])


def test_max_regions_of_zero_raises():
    with pytest.raises(ValueError, match="max_regions must be at least 1, got 0"):
        build(max_regions=0)


class MimickingDetector(nn.Module):
    """A detector, its mimicking, and the hidden states of its last decoder layer."""

    def __init__(self):
        super().__init__()
        self.detector = small_detector("multi_scale")
        self.mimicking = build(
            backbone_channels=self.detector.backbone.channels[-1], embed_dim=64, crop_size_px=64
        )
        self.hidden = None
        self.detector.decoder.layers[-1].register_forward_hook(self._keep)

    def _keep(self, _module, _arguments, output):
        self.hidden = output

    def forward(self, images):
        return self.detector(images)


def total_loss(replica, model, images, targets):
    output = replica(images)
    criterion = paper_criterion(mimicking_weight=0.1)
    result = criterion(output, targets, 2.0)
    features = model.mimicking(
        model.detector.backbone, images, model.hidden, targets, result.last_match
    )
    return criterion.add_mimicking(result.losses, features, 2.0)["total"]


# With the memory layout of the backbone on a CPU, gradients of 1x1 kernels have other strides.
@pytest.mark.filterwarnings("ignore:Grad strides do not match bucket view:UserWarning")
def test_data_parallel_gradients_are_complete_with_and_without_objects():
    """The crops bypass the wrapper, which still reduces every gradient once."""
    model = MimickingDetector().train()
    images = ImageBatch.from_images([torch.randn(3, 64, 64), torch.randn(3, 60, 64)])
    some, none = [make_target(3), make_target(1, 0)], [make_target(), make_target()]
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        replica = DistributedDataParallel(model)
        for targets in (some, none, some):
            torch.manual_seed(1)
            replica.zero_grad()
            total_loss(replica, model, images, targets).backward()
            together = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
            torch.manual_seed(1)
            replica.zero_grad()
            total_loss(model, model, images, targets).backward()
            for name, gradient in together.items():
                torch.testing.assert_close(gradient, model.get_parameter(name).grad)
    finally:
        dist.destroy_process_group()


def test_training_reduces_the_mimicking_losses():
    torch.manual_seed(0)
    backbone, mimicking, hidden = SmallBackbone(), build(), nn.Parameter(torch.randn(1, 4, 12))
    images = ImageBatch.from_images([torch.randn(3, 64, 64)])
    targets = [
        Target(
            torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.7, 0.7, 0.5, 0.6]]),
            torch.tensor([1, 4]),
            0,
            (64, 64),
        )
    ]
    modules = nn.ModuleList([backbone, mimicking])
    optimizer = torch.optim.Adam([*modules.parameters(), hidden], lr=1e-3)
    history = []
    for _ in range(40):
        features = mimicking(backbone, images, hidden, targets, [match((0, 1), (3, 0))])
        losses = mimicking_losses(features, 2.0)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
        history.append({name: value.item() for name, value in losses.items()})
    for name, first in history[0].items():
        assert history[-1][name] < 0.1 * first, name
