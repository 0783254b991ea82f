"""Label embedding of denoising in DINO, which every source has a name for.

A model that was trained without denoising has none. Loaders demand it all the same, and it is not
used outside training: it is written as zeros, and zeros are read as none.
"""

import functools
from collections.abc import Callable

from torch import Tensor

from deformable_detr.conversion.class_rows import LABEL_EMBED
from deformable_detr.conversion.layout import WHOLE, NameBlock, NameRow
from deformable_detr.messages import shown

_Tensors = Callable[[dict[str, Tensor]], dict[str, Tensor]]


def label_block(theirs: str) -> NameBlock:
    """Return the row of a table for the label embedding, which they call `theirs`."""
    return NameBlock(theirs, LABEL_EMBED, (NameRow("", "", WHOLE),), when="denoising")


def reader(theirs: str, class_head: str) -> _Tensors:
    """Return the function that leaves out what their label embedding has beyond ours.

    Args:
        theirs: their name of it.
        class_head: their name of the weight of a class head, which has K rows.
    """
    return functools.partial(_read, theirs, class_head)


def writer(theirs: str, class_head: str, *, num_spare: int = 0) -> _Tensors:
    """Return the function that gives the label embedding the rows that their loader demands.

    Args:
        theirs: their name of it.
        class_head: as in `reader`.
        num_spare: number of their rows beyond the K classes, which are never used.
    """
    return functools.partial(_write, theirs, class_head, num_spare)


def _read(theirs: str, class_head: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    labels, head = state.get(theirs), state.get(class_head)
    if labels is None or not labels.any():
        return {name: tensor for name, tensor in state.items() if name != theirs}
    if head is None or head.ndim != 2:
        return state  # which is reported later
    if labels.ndim != 2 or len(labels) < len(head) or labels.shape[1] != head.shape[1]:
        raise ValueError(
            f"{shown(theirs)} must be at least {tuple(head.shape)}, one row for each class, got "
            f"{tuple(labels.shape)}; the file is damaged, or of another version of its source"
        )
    return {**state, theirs: labels[: len(head)]}


def _write(
    theirs: str, class_head: str, num_spare: int, state: dict[str, Tensor]
) -> dict[str, Tensor]:
    head = state[class_head]
    labels = state[theirs] if theirs in state else head.new_zeros(head.shape)
    if num_spare:
        wide = labels.new_zeros((len(labels) + num_spare, labels.shape[1]))
        wide[: len(labels)] = labels
        labels = wide
    return {**state, theirs: labels}
