"""Fused backbones in the official layout, in transformers' model and in onnxruntime."""

from collections import Counter

import pytest
import torch
from helpers.branch_blocks import randomize
from helpers.models import STRIDES, randomize_weights, resnet
from helpers.transformers_oracle import (
    NUM_CLASSES,
    NUM_LAYERS,
    NUM_QUERIES,
    build_oracle,
    oracle_output,
)
from torch import Tensor, nn

from deformable_detr.builders import build_model
from deformable_detr.config.loading import load_config
from deformable_detr.conversion.weights import export_weights, import_weights
from deformable_detr.layers.reparam.base import ReparameterizedBlock
from deformable_detr.layers.reparam.fuse import fuse_model
from deformable_detr.models.backbones.surgery import (
    ac_block,
    diverse_branch_block,
    modulated_deform_conv,
    replace_convs,
)
from deformable_detr.structures import ImageBatch

BASE_PARAMETERS = 40_069_665  # official repository, 91 classes
EXTRA = "install the extra 'export'"
Maps = list[Tensor]  # maps of a backbone, finest first
BLOCKS = {"acb": ac_block(), "dbb": diverse_branch_block()}


@torch.no_grad()
def trained_like(network: nn.Module) -> nn.Module:
    """Randomize a network: every branch contributes, and features keep a moderate magnitude."""
    for block in network.modules():
        if isinstance(block, ReparameterizedBlock):
            randomize(block)
    for name, tensor in network.state_dict().items():
        if name.endswith("bn3.weight"):
            tensor.mul_(0.3)
    return network.eval()


@pytest.mark.parametrize("kind", BLOCKS)
@torch.no_grad()
def test_a_fused_detector_in_the_official_layout_is_the_plain_model(kind):
    config = load_config("deformable_detr_r50", ["model.backbone.weights=none"])
    torch.manual_seed(0)
    plain = build_model(config, num_classes=91).eval()
    model = build_model(config, num_classes=91)
    randomize_weights(model)
    replace_convs(model.backbone, BLOCKS[kind], strides=STRIDES)
    trained_like(model)
    with pytest.raises(ValueError, match="must be fused for the layout of official, got 13"):
        export_weights(model, to="official")
    fused = fuse_model(model)
    before = list(fused.state_dict())
    exported = export_weights(fused, to="official")
    assert list(fused.state_dict()) == before
    assert list(exported) == list(export_weights(plain, to="official"))
    import_weights(plain, exported, source="official")
    assert sum(parameter.numel() for parameter in plain.parameters()) == BASE_PARAMETERS
    images = [torch.randn(3, 64, 96)]
    wanted = model(images).last
    assert wanted.logits.std() > 0.01
    for network in (fused, plain):
        result = network(images).last
        assert (result.boxes - wanted.boxes).abs().max() < 1e-4
        assert (result.logits - wanted.logits).abs().max() < 1e-4


@torch.no_grad()
def test_a_fused_detector_runs_in_the_model_of_transformers():
    overrides = [
        "model.backbone.weights=none",
        f"model.encoder.num_layers={NUM_LAYERS}",
        f"model.decoder.num_layers={NUM_LAYERS}",
        f"model.queries.num_queries={NUM_QUERIES}",
    ]
    model = build_model(load_config("deformable_detr_r50", overrides), num_classes=NUM_CLASSES)
    randomize_weights(model)
    replace_convs(model.backbone, BLOCKS["dbb"], strides=STRIDES)
    trained_like(model)
    oracle = build_oracle()
    oracle.load_state_dict(export_weights(fuse_model(model), to="transformers"), strict=True)
    images = [torch.randn(3, 64, 96), torch.randn(3, 80, 70)]
    found = oracle_output(oracle, ImageBatch.from_images(images)).last
    wanted = model(images).last
    assert wanted.logits.std() > 0.01
    assert (found.logits - wanted.logits).abs().max() < 1e-4
    assert (found.boxes - wanted.boxes).abs().max() < 1e-4


def run_in_onnxruntime(backbone: nn.Module, images: list[Tensor]) -> tuple[Counter, list[Maps]]:
    """Return the operators of the exported graph, and the maps of each image."""
    pytest.importorskip("onnxscript", reason=EXTRA)
    onnxruntime = pytest.importorskip("onnxruntime", reason=EXTRA)
    exported = torch.onnx.export(
        backbone, (images[0],), dynamo=True, opset_version=20, verbose=False
    )
    session = onnxruntime.InferenceSession(
        exported.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    name = session.get_inputs()[0].name
    maps = [session.run(None, {name: image.numpy()}) for image in images]
    operators = Counter(node.op_type for node in exported.model.graph)
    return operators, [[torch.from_numpy(m) for m in of_image] for of_image in maps]


def assert_close(maps: list[Maps], others: list[Maps]) -> None:
    for results, expected in zip(maps, others, strict=True):
        for result, wanted in zip(results, expected, strict=True):
            assert wanted.std() > 0.01
            assert (result - wanted).abs().max() < 1e-4 * max(1, wanted.abs().max())


@pytest.mark.parametrize(("kind", "depth", "num_convs"), [("dbb", 50, 53), ("acb", 18, 20)])
@torch.no_grad()
def test_a_backbone_runs_in_onnxruntime_in_training_form_and_fused(kind, depth, num_convs):
    torch.manual_seed(0)
    backbone = resnet(depth)
    randomize_weights(backbone)
    replace_convs(backbone, BLOCKS[kind], strides=STRIDES)
    trained_like(backbone)
    images = [torch.randn(1, 3, 64, 64) for _ in range(3)]
    wanted = [backbone(image) for image in images]
    operators, trained = run_in_onnxruntime(backbone, images)
    assert operators["Conv"] > num_convs
    assert operators["ScatterND"] == 0
    operators, fused = run_in_onnxruntime(fuse_model(backbone), images)
    assert operators["Conv"] == num_convs
    assert set(operators) == {"Conv", "Relu", "Add", "MaxPool"}
    assert_close(trained, wanted)
    assert_close(fused, wanted)
    assert_close(trained, fused)


@torch.no_grad()
def test_deformable_convolutions_of_a_resnet_run_in_onnxruntime():
    torch.manual_seed(0)
    backbone = resnet(18, out_strides=(8,))
    randomize_weights(backbone)
    replace_convs(backbone, modulated_deform_conv(mask_scale=2.0), strides=(8,))
    for name, tensor in backbone.eval().state_dict().items():
        if ".conv_offset." in name:
            tensor.normal_(std=0.02)
    images = [torch.randn(1, 3, 64, 64) for _ in range(3)]
    operators, maps = run_in_onnxruntime(backbone, images)
    assert operators["DeformConv"] == 4
    assert_close(maps, [backbone(image) for image in images])
