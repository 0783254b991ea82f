import torch
from torch import nn

from deformable_detr.engine.run.header import (
    describe_batch,
    describe_dataset,
    describe_device,
    describe_learning_rates,
    describe_parameters,
)
from deformable_detr.ops import resolve_backend


def test_the_total_batch_is_the_product_of_its_parts() -> None:
    assert describe_batch(total_batch=24, micro_batch=2, world_size=4) == (
        "24 = 2 images x 4 processes x 3 accumulations"
    )
    assert describe_batch(total_batch=2, micro_batch=2, world_size=1) == (
        "2 = 2 images x 1 process x 1 accumulation"
    )


def test_uneven_shares_of_a_batch_are_described() -> None:
    assert describe_batch(total_batch=32, micro_batch=2, world_size=3) == (
        "32 = 16 x 2 images, 5 or 6 times for each of 3 processes, some of which wait"
    )


def test_parameters_are_counted_with_and_without_the_frozen_ones() -> None:
    model = nn.Sequential(nn.Linear(100, 10), nn.Linear(10, 1).requires_grad_(False))
    assert describe_parameters(model) == "1,021 parameters (1,010 trainable)"


def test_the_boxes_dropped_from_a_data_set_are_described() -> None:
    assert describe_dataset(1200, 9999, {"crowd": 0}) == "1,200 images with 9,999 objects"
    assert describe_dataset(3, 1, {"crowd": 2, "empty": 1}) == (
        "3 images with 1 object (2 boxes dropped: crowd, 1 box dropped: empty)"
    )


def test_the_device_is_described_with_the_back_end_that_auto_selects() -> None:
    cpu = torch.device("cpu")
    resolved = resolve_backend("auto", cpu)
    assert describe_device(cpu, "auto") == f"cpu, attention back-end auto: {resolved}"
    assert describe_device(cpu, "reference") == "cpu, attention back-end reference"


def test_every_trained_parameter_group_is_described_with_its_rate() -> None:
    groups = [
        {"params": [nn.Parameter(torch.ones(1))], "role": role, "lr": rate, "initial_lr": rate}
        for role, rate in (("default", 2e-4), ("backbone", 2e-5), ("backbone_sampling", 2e-6))
    ]
    optimizer = torch.optim.SGD(groups)
    optimizer.param_groups[0]["lr"] = 1.0  # as set by the schedule
    assert describe_learning_rates(optimizer) == (
        "default 0.0002, backbone 2e-05, backbone_sampling 2e-06"
    )
