from collections.abc import Sequence

import pytest
import torch
from helpers.tiny_training import TinyDetector, tiny_batch, tiny_criterion, tiny_state

from deformable_detr.engine.memory import naming_memory
from deformable_detr.engine.train import train_step
from deformable_detr.structures import ImageBatch, ModelOutput, Target

MORE_THAN_THERE_IS = 2**60  # bytes


class Greedy(TinyDetector):
    """Detector that allocates more memory than any machine has."""

    def forward(self, images: ImageBatch, targets: Sequence[Target] | None = None) -> ModelOutput:
        torch.empty(MORE_THAN_THERE_IS, dtype=torch.uint8)
        return super().forward(images, targets)


def test_an_out_of_memory_error_names_sizes_images_and_remedies() -> None:
    state = tiny_state()
    state.replica = Greedy()
    batch = tiny_batch([41, 42], [3, 0], size=8)
    batch.images.padding_mask[1, :, 5:] = True
    batch.images.padding_mask[1, 7:] = True
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train_step(state, [batch], tiny_criterion(), seed=0, max_grad_norm=0.1)
    said = str(caught.value)
    assert said.startswith(
        "memory ran out in step 0 for a micro-batch of 2 images padded to 8 x 8: image 41 "
        "(8 x 8, 3 boxes), image 42 (7 x 5, 0 boxes); choose a smaller train.micro_batch"
    )
    for remedy in ("train.gradient_checkpointing=true", "data.max_padded_pixels", "augmentation"):
        assert remedy in said
    assert "allocate" in said  # PyTorch's own message
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_out_of_memory_error_of_a_gpu_is_recognized_by_its_type() -> None:
    with (
        pytest.raises(torch.OutOfMemoryError, match=r"memory ran out in step 7 .*tried to get 3"),
        naming_memory(tiny_batch([1], [1]), 7),
    ):
        raise torch.OutOfMemoryError("tried to get 3")


def test_other_errors_propagate() -> None:
    with pytest.raises(RuntimeError, match=r"^another$"), naming_memory(tiny_batch([1], [1]), 7):
        raise RuntimeError("another")
