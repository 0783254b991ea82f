import copy

import torch
from torch import nn
from torchvision.models import mobilenet_v2
from torchvision.ops import FrozenBatchNorm2d

from deformable_detr.layers.reparam.folding import FoldingSequential, fold_frozen_norms


def randomized(module):
    for name, tensor in {**dict(module.named_parameters()), **dict(module.named_buffers())}.items():
        with torch.no_grad():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            else:
                tensor.normal_(std=0.3)
    return module.double()


def gradients(module, features):
    module.zero_grad()
    module(features).square().sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def test_a_folded_network_has_the_same_outputs_and_gradients():
    plain = randomized(mobilenet_v2(norm_layer=FrozenBatchNorm2d).features[:4])
    folded = fold_frozen_norms(copy.deepcopy(plain))
    assert sum(isinstance(m, FoldingSequential) for m in folded.modules()) > 6
    assert list(folded.state_dict()) == list(plain.state_dict())
    features = torch.randn(2, 3, 32, 40, dtype=torch.float64)
    torch.testing.assert_close(folded(features), plain(features))
    wanted = gradients(plain, features)
    for name, gradient in gradients(folded, features).items():
        torch.testing.assert_close(gradient, wanted[name])


def test_only_frozen_norms_after_plain_convolutions_are_folded():
    trained = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4))
    biased = nn.Sequential(nn.Conv2d(3, 4, 1), FrozenBatchNorm2d(4))
    before = nn.Sequential(FrozenBatchNorm2d(3), nn.Conv2d(3, 4, 1))
    for module in (trained, biased, before):
        assert fold_frozen_norms(module) is module


class Doubling(nn.Conv2d):
    """A subclass of a convolution that computes something else."""

    def forward(self, features):
        return 2 * super().forward(features)


def test_a_norm_is_skipped_only_after_a_plain_convolution():
    modules = (
        Doubling(3, 4, 3, bias=False),
        FrozenBatchNorm2d(4),
        nn.ReLU(),
        FrozenBatchNorm2d(4),
        FrozenBatchNorm2d(4),
        nn.Conv2d(4, 5, 1, bias=False),
        FrozenBatchNorm2d(5),
    )
    plain = randomized(nn.Sequential(*modules))
    features = torch.randn(1, 3, 6, 7, dtype=torch.float64)
    torch.testing.assert_close(FoldingSequential(*modules)(features), plain(features))
    assert fold_frozen_norms(plain) is plain
