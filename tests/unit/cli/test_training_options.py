"""Small runs with settings that change the computation but not the result."""

import logging
from pathlib import Path

import pytest
import torch
from helpers.coco_files import write_coco_set
from helpers.small_run import SMALL_RUN, data_settings
from torch import Tensor

from deformable_detr.builders import build_sampler, largest_size
from deformable_detr.config.loading import load_config
from deformable_detr.data.samplers import BucketSampler, MicroBatchSampler
from deformable_detr.engine.checkpoints.checkpoint import load_checkpoint
from deformable_detr.engine.state import TrainState
from deformable_detr.engine.train import TrainLoop
from deformable_detr.workflows import training

CHANNELS_LAST = torch.channels_last


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    train = write_coco_set(folder / "train", num_images=4, empty=[2])
    return data_settings(train, write_coco_set(folder / "val", num_images=1, seed=1))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, data: list[str]) -> dict[str, Tensor]:
    return train(tmp_path_factory.mktemp("plain") / "run", data)


def train(folder: Path, data: list[str], *overrides: str) -> dict[str, Tensor]:
    """Return the weights after two steps."""
    settings = [*SMALL_RUN, *data, "train.max_steps=2", *overrides]
    config = load_config("deformable_detr_r50", settings)
    training.train(config, run_dir=folder, device="cpu")
    return load_checkpoint(folder / "last.pth").model


def assert_equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.equal(second[name]), name


def _without_keys(bias: Tensor) -> Tensor:
    """Return the biases of queries and values of self-attention."""
    query, _, value = bias.chunk(3)
    return torch.cat((query, value))


# PyTorch warns on machines with fewer cores than workers.
@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
@pytest.mark.parametrize("num_workers", [0, 2])
def test_two_runs_with_the_same_seed_have_bitwise_equal_weights(
    tmp_path: Path, data: list[str], plain: dict[str, Tensor], num_workers: int
) -> None:
    again = train(tmp_path / "run", data, f"data.num_workers={num_workers}")
    assert_equal(again, plain)


def test_deterministic_algorithms_are_enabled_during_training_only(
    tmp_path: Path,
    data: list[str],
    plain: dict[str, Tensor],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []
    fit = training.fit

    def look(state: TrainState, loop: TrainLoop) -> None:
        seen.append(torch.are_deterministic_algorithms_enabled())
        fit(state, loop)

    monkeypatch.setattr(training, "fit", look)
    assert_equal(train(tmp_path / "run", data, "train.deterministic=true"), plain)
    assert seen == [True]
    assert not torch.are_deterministic_algorithms_enabled()


def test_gradient_checkpointing_trains_to_bitwise_equal_weights(
    tmp_path: Path, data: list[str], plain: dict[str, Tensor]
) -> None:
    weights = train(tmp_path / "run", data, "train.gradient_checkpointing=true")
    assert_equal(weights, plain)


def test_channels_last_trains_to_the_same_weights_up_to_rounding(
    tmp_path: Path, data: list[str], plain: dict[str, Tensor]
) -> None:
    weights = train(tmp_path / "run", data, "train.channels_last=true")
    convolutions = [name for name, value in weights.items() if value.ndim == 4]
    assert convolutions
    for name in convolutions:
        assert weights[name].is_contiguous(memory_format=CHANNELS_LAST), name
        wide = (
            plain[name].shape[1] > 1 and plain[name].shape[2] > 1
        )  # else both layouts are the same
        assert not wide or not plain[name].is_contiguous(memory_format=CHANNELS_LAST), name
    moved = 0.0
    start = train(tmp_path / "start", data, "train.optimizer.lr=1e-30")
    for name, value in plain.items():
        found, expected = weights[name], value
        if name.endswith("self_attn.in_proj_bias"):
            # Softmax does not depend on the bias of keys: AdamW scales up its rounding errors.
            found, expected = (_without_keys(bias) for bias in (found, expected))
        difference = (found - expected).norm() / expected.norm().clamp(min=1e-30)
        moved = max(moved, float((start[name] - value).norm()))
        assert difference < 1e-5, name
    assert moved > 1e-3


def test_buckets_and_max_padded_pixels_reach_the_loop(
    tmp_path: Path, data: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[type, list[int]]] = []

    def look(state: TrainState, loop: TrainLoop) -> None:
        shapes = [batch.images.images.shape for batch in loop.loader]
        seen.append((type(loop.sampler), [N * H * W for N, _, H, W in shapes]))
        loop.folder.last.touch()

    monkeypatch.setattr(training, "fit", look)
    for settings in ([], ["train.sample_order=buckets", "data.max_padded_pixels=3000"]):
        config = load_config("deformable_detr_r50", [*SMALL_RUN, *data, *settings])
        name = "capped" if settings else "plain"
        training.train(config, run_dir=tmp_path / name, device="cpu")
    (plain_order, plain_pixels), (order, pixels) = seen
    assert (plain_order, order) == (MicroBatchSampler, BucketSampler)
    assert min(plain_pixels) > 3000
    assert 2500 < min(pixels) <= max(pixels) <= 3000


def test_buckets_without_aspect_ratios_are_refused() -> None:
    config = load_config("deformable_detr_r50", ["train.sample_order=buckets"])
    with pytest.raises(ValueError, match="aspect_ratios must be given for sample_order: buckets"):
        build_sampler(config, num_samples=64, rank=0, world_size=1)


def test_the_header_shows_every_learning_rate_and_the_log_the_peak_memory(
    tmp_path: Path, data: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    settings = ["model.backbone.conv={kind: deform, strides: [16]}", "train.freeze=[sampling]"]
    with caplog.at_level(logging.INFO):
        train(tmp_path / "run", data, *settings)
    assert "default 0.0002, backbone 2e-05, backbone_sampling 2e-06" in caplog.text
    assert "step 2: peak memory resident" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "size"),
    [
        ((), (1333, 1333)),
        (("train.micro_batch=1",), (800, 1333)),
        (("data.max_padded_pixels=2000000",), (1000, 1000)),
        (("data.augmentation={kind: zoom_crop, size: 256}",), (256, 256)),
    ],
)
def test_the_largest_micro_batch_has_the_padding_of_a_wide_and_a_high_image(
    overrides: tuple[str, ...], size: tuple[int, int]
) -> None:
    assert largest_size(load_config("deformable_detr_r50", overrides)) == size
