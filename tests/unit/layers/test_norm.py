import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from deformable_detr.layers.norm import FixedStatisticsNorm2d, is_affine_norm, scale_and_shift


def random_state(channels):
    return {
        "weight": torch.rand(channels) + 0.5,
        "bias": torch.randn(channels),
        "running_mean": torch.randn(channels),
        "running_var": torch.rand(channels) + 0.5,
        "num_batches_tracked": torch.tensor(7),
    }


def test_fixed_statistics_are_kept_in_training_while_gamma_and_beta_are_trained():
    norm, evaluated = FixedStatisticsNorm2d(5), nn.BatchNorm2d(5).eval()
    state = random_state(5)
    norm.load_state_dict(state)
    evaluated.load_state_dict(state)
    features = torch.randn(2, 5, 6, 7, requires_grad=True)
    output = norm.train()(features)
    torch.testing.assert_close(output, evaluated(features))
    output.square().sum().backward()
    assert norm.weight.grad.abs().min() > 0
    assert norm.bias.grad.abs().min() > 0
    assert [name for name, _ in norm.named_parameters()] == ["weight", "bias"]
    for name, tensor in norm.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_the_state_dict_has_the_names_of_batch_norm():
    assert list(FixedStatisticsNorm2d(3).state_dict()) == list(nn.BatchNorm2d(3).state_dict())


def test_conversions_of_batch_norms_ignore_fixed_statistics():
    network = nn.Sequential(FixedStatisticsNorm2d(3))
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert type(converted[0]) is FixedStatisticsNorm2d


@pytest.mark.parametrize("kind", [FixedStatisticsNorm2d, nn.BatchNorm2d, FrozenBatchNorm2d])
def test_scale_and_shift_equal_the_norm(kind):
    norm = kind(5, eps=0.01).eval()
    norm.load_state_dict(random_state(5))
    norm.double()
    features = torch.randn(2, 5, 3, 3, dtype=torch.float64)
    scale, shift = scale_and_shift(norm)
    result = features * scale[:, None, None] + shift[:, None, None]
    torch.testing.assert_close(result, norm(features))


def test_scale_and_shift_of_a_norm_without_gamma_and_beta():
    norm = nn.BatchNorm2d(5, affine=False).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    features = torch.randn(2, 5, 3, 3)
    scale, shift = scale_and_shift(norm)
    torch.testing.assert_close(
        features * scale[:, None, None] + shift[:, None, None], norm(features)
    )


def test_a_norm_without_statistics_raises():
    with pytest.raises(ValueError, match="norm must store statistics, got one with track_running"):
        scale_and_shift(nn.BatchNorm2d(3, track_running_stats=False))


def test_a_norm_with_an_activation_or_without_statistics_is_not_affine():
    assert is_affine_norm(nn.BatchNorm2d(3))
    assert not is_affine_norm(BatchNormAct2d(3))
    assert not is_affine_norm(nn.BatchNorm2d(3, track_running_stats=False))
    assert not is_affine_norm(nn.GroupNorm(1, 3))
