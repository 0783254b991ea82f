"""Exported blocks, in training form and fused, compute the same in onnxruntime and PyTorch."""

from collections import Counter

import pytest
import torch
from helpers.branch_blocks import randomize
from torch import nn

from deformable_detr.layers.reparam.blocks import ACBlock, DiverseBranchBlock
from deformable_detr.layers.reparam.fuse import fuse_model

EXTRA = "install the extra 'export'"
BLOCKS = 4


@pytest.fixture(scope="module")
def forms():
    """Build a network of blocks of all kinds, with activations in between, and its fused form."""
    torch.manual_seed(0)
    network = nn.Sequential(
        DiverseBranchBlock(3, 8, 3, stride=2, padding=1),
        nn.ReLU(),
        ACBlock(8, 8, 3, padding=0),
        nn.ReLU(),
        DiverseBranchBlock(8, 8, 3, padding=2, dilation=2, groups=8),
        nn.ReLU(),
        DiverseBranchBlock(8, 12, 5, padding=2, groups=2),
    )
    randomize(network).eval()
    return network, fuse_model(network)


@pytest.fixture(scope="module")
def programs(forms):
    return [torch.export.export(form, (images(),)) for form in forms]


def images():
    return torch.randn(1, 3, 21, 26)


def test_graphs_of_torch_export_agree(forms, programs):
    inputs = images()
    wanted = forms[0](inputs)
    for program in programs:
        torch.testing.assert_close(program.module()(inputs), wanted, rtol=0, atol=1e-4)
    called = Counter(
        str(node.target) for node in programs[1].graph.nodes if node.op == "call_function"
    )
    assert called == {"aten.conv2d.default": BLOCKS, "aten.relu.default": BLOCKS - 1}


def test_exported_graphs_agree_with_each_other_and_with_pytorch(forms, programs):
    pytest.importorskip("onnxscript", reason=EXTRA)
    onnxruntime = pytest.importorskip("onnxruntime", reason=EXTRA)
    inputs = [images() for _ in range(3)]
    operators, outputs = [], []
    for program in programs:
        exported = torch.onnx.export(program, dynamo=True, opset_version=20, verbose=False)
        operators.append(Counter(node.op_type for node in exported.model.graph))
        session = onnxruntime.InferenceSession(
            exported.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        name = session.get_inputs()[0].name
        outputs.append([torch.from_numpy(session.run(None, {name: x.numpy()})[0]) for x in inputs])
    assert operators[0]["Conv"] > 2 * BLOCKS
    assert operators[0]["ScatterND"] == 0
    assert operators[1] == {"Conv": BLOCKS, "Relu": BLOCKS - 1}
    for features, trained, fused in zip(inputs, *outputs, strict=True):
        wanted = forms[0](features)
        assert 0.1 < wanted.std() < 10
        assert (trained - fused).abs().max() < 1e-4
        for result in (trained, fused, forms[1](features)):
            assert (result - wanted).abs().max() < 1e-4
