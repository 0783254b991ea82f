"""Blocks in training form and fused, exported, compute the same in onnxruntime and here."""

from collections import Counter

import pytest
import torch
from helpers.branch_blocks import randomize
from torch import nn

from deformable_detr.layers.branch_blocks import ACBlock, DiverseBranchBlock
from deformable_detr.layers.reparam import fuse_model

EXTRA = "install the extra 'export'"
BLOCKS = 4


@pytest.fixture(scope="module")
def forms():
    """A network of blocks of all kinds, with activations so that no two merge, and it fused."""
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


def test_exported_graphs_agree_with_each_other_and_with_pytorch(forms):
    pytest.importorskip("onnxscript", reason=EXTRA)
    onnxruntime = pytest.importorskip("onnxruntime", reason=EXTRA)
    inputs = [torch.randn(1, 3, 21, 26) for _ in range(3)]
    outputs = []
    for form in forms:
        program = torch.onnx.export(
            form, (inputs[0],), dynamo=True, opset_version=20, verbose=False
        )
        operators = Counter(node.op_type for node in program.model.graph)
        if form is forms[1]:
            assert operators == {"Conv": BLOCKS, "Relu": BLOCKS - 1}
        else:
            assert operators["Conv"] > 2 * BLOCKS
            assert operators["ScatterND"] == 0
        session = onnxruntime.InferenceSession(
            program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        name = session.get_inputs()[0].name
        outputs.append([torch.from_numpy(session.run(None, {name: x.numpy()})[0]) for x in inputs])
    for features, trained, fused in zip(inputs, *outputs, strict=True):
        wanted = forms[0](features)
        assert 0.1 < wanted.std() < 10
        assert (trained - fused).abs().max() < 1e-4
        for result in (trained, fused, forms[1](features)):
            assert (result - wanted).abs().max() < 1e-4


def test_graphs_of_torch_export_agree(forms):
    features = torch.randn(1, 3, 21, 26)
    trained, fused = (torch.export.export(form, (features,)) for form in forms)
    torch.testing.assert_close(
        trained.module()(features), fused.module()(features), rtol=0, atol=1e-4
    )
    called = Counter(str(node.target) for node in fused.graph.nodes if node.op == "call_function")
    assert called == {"aten.conv2d.default": BLOCKS, "aten.relu.default": BLOCKS - 1}
