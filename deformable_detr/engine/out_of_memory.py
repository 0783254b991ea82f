"""What a step that runs out of memory says: the images that were too much, and what helps."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from deformable_detr.data.collate import Batch

# In PyTorch's errors where the memory is not a GPU's and the type says nothing: CPU, and MPS.
_WORDS = ("can't allocate memory", "not enough memory", "out of memory")


@contextmanager
def naming_memory(batch: Batch, step: int) -> Iterator[None]:
    """A block that computes on a micro-batch: where memory runs out, the error describes that.

    Other processes, which wait for this one, end with it, as with any error.

    Raises:
        torch.OutOfMemoryError: memory has run out.
    """
    try:
        yield
    except RuntimeError as error:
        is_short = isinstance(error, torch.OutOfMemoryError)
        if not is_short and not any(words in str(error) for words in _WORDS):
            raise
        raise torch.OutOfMemoryError(_describe(batch, step, error)) from error


def _describe(batch: Batch, step: int, error: RuntimeError) -> str:
    height, width = batch.images.images.shape[2:]
    sizes = [_size(mask) for mask in batch.images.padding_mask.cpu()]
    images = ", ".join(
        f"image {target.image_id} ({size[0]} x {size[1]}, {len(target)} boxes)"
        for size, target in zip(sizes, batch.targets, strict=True)
    )
    return (
        f"memory ran out in step {step} for a micro-batch of {len(batch.targets)} images padded to "
        f"{height} x {width}: {images}; choose a smaller train.micro_batch (gradients accumulate "
        "to train.total_batch), train.gradient_checkpointing=true, data.max_padded_pixels, or "
        f"smaller sizes in data.augmentation ({str(error).splitlines()[0]})"
    )


def _size(padding_mask: torch.Tensor) -> tuple[int, int]:
    """(height, width) of an image without its padding."""
    return int((~padding_mask[:, 0]).sum()), int((~padding_mask[0]).sum())
