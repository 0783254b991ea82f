"""Structure of a detector, from the model or from the names in a file."""

import itertools
import re
from collections.abc import Mapping

from torch import Tensor

from deformable_detr.conversion.layout import (
    DetectorStructure,
    Each,
    Layout,
    NameBlock,
    When,
    row_pairs,
)
from deformable_detr.layers.position import LearnedPositionEmbedding
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.models.proposals import ProposalQueries

_BLOCK = re.compile(
    r"^backbone\.body\.layer(?P<stage>\d)\.(?P<block>\d+)\.conv(?P<conv>\d)\.weight$"
)
_MAX_CELLS = 50  # of learned positions, as in the official code and in transformers
_BASE_SIZE = 0.05  # of proposals, as in the same implementations
_ANY = DetectorStructure(
    stage_blocks=(1, 1, 1, 1),
    bottleneck=True,
    num_levels=1,
    num_backbone_levels=0,
    encoder_layers=1,
    decoder_layers=1,
    box_refinement=True,
    two_stage=True,
    learned_position=True,
)


def structure_of_model(model: DeformableDETR) -> DetectorStructure:
    """Return the structure of a detector of this package.

    Raises:
        ValueError: the model has a part that no other implementation has; the message names it.
    """
    matches = [match for name in model.state_dict() if (match := _BLOCK.match(name))]
    blocks: dict[int, int] = {}
    for match in matches:
        stage, block = int(match["stage"]), int(match["block"])
        blocks[stage] = max(blocks.get(stage, 0), block + 1)
    if not blocks:
        raise ValueError(
            "backbone must be a ResNet for its weights to have names elsewhere, "
            f"got {type(model.backbone).__name__} of {next(iter(model.backbone.state_dict()))}, ..."
        )
    _require_known_parts(model)
    return DetectorStructure(
        stage_blocks=tuple(blocks[stage] for stage in sorted(blocks)),
        bottleneck=any(match["conv"] == "3" for match in matches),
        num_levels=model.neck.num_levels,
        num_backbone_levels=len(model.backbone.channels),
        encoder_layers=len(model.encoder.layers),
        decoder_layers=len(model.decoder.layers),
        box_refinement=model.decoder.box_refinement,
        two_stage=isinstance(model.queries, ProposalQueries),
        learned_position=isinstance(model.memory_builder.position, LearnedPositionEmbedding),
    )


def _require_known_parts(model: DeformableDETR) -> None:
    """Raise for settings other sources lack and that names and shapes do not reveal."""
    queries, position = model.queries, model.memory_builder.position
    if isinstance(queries, ProposalQueries) and (
        queries.content != "box" or queries.base_size != _BASE_SIZE
    ):
        raise ValueError(
            "two-stage queries must have content 'box' and base_size "
            f"{_BASE_SIZE:g} elsewhere, got {queries.content!r} and {queries.base_size:g}"
        )
    if isinstance(position, LearnedPositionEmbedding):
        cells = position.row_embed.num_embeddings
        if cells != _MAX_CELLS:
            raise ValueError(
                f"learned positions must have max_cells {_MAX_CELLS} elsewhere, got {cells}"
            )


def structure_of_names(layout: Layout, state: Mapping[str, Tensor]) -> DetectorStructure:
    """Return the structure of the detector that a source's tensors belong to.

    Repeated blocks are counted by the indices that are present for the names of the table.
    """
    counts: dict[Each, int] = {}
    for block in layout.blocks:
        if block.each and block.when == "always":
            counts.setdefault(block.each, _count(block, state))
    two_stage = _has(layout, state, "two_stage")
    num_levels, num_backbone_levels = _levels(layout, state, counts)
    stages = [counts[each] for each in ("stage1", "stage2", "stage3", "stage4")]
    return DetectorStructure(
        stage_blocks=tuple(itertools.takewhile(bool, stages)),
        bottleneck=_has_third_convolution(layout, state),
        num_levels=num_levels,
        num_backbone_levels=num_backbone_levels,
        encoder_layers=counts["encoder_layer"],
        decoder_layers=counts["decoder_layer"],
        box_refinement=two_stage or _has_own_heads(layout, state, counts["decoder_layer"]),
        two_stage=two_stage,
        learned_position=_has(layout, state, "learned_position"),
    )


def _has(layout: Layout, state: Mapping[str, Tensor], when: When) -> bool:
    """Return whether a part exists that only such structures have; heads do not count."""
    return any(
        _first_name(block) in state
        for block in layout.blocks
        if block.when == when and "{n}" not in block.theirs
    )


def _names(block: NameBlock, index: int) -> list[str]:
    return [
        pair.theirs
        for row in block.rows
        if index == 0 or not row.first_only
        for pair in row_pairs(block, row, index, _ANY)
    ]


def _first_name(block: NameBlock) -> str:
    return _names(block, 0)[0]


def _count(block: NameBlock, state: Mapping[str, Tensor]) -> int:
    """Return the number of consecutive indices of a repeated block, starting at 0."""
    return next(
        index
        for index in itertools.count()
        if not any(name in state for name in _names(block, index))
    )


def _levels(
    layout: Layout, state: Mapping[str, Tensor], counts: Mapping[Each, int]
) -> tuple[int, int]:
    """Return the number of levels, and of those projected from the backbone (1x1 convolutions)."""
    if "backbone_level" in counts:
        return counts["backbone_level"] + counts["extra_level"], counts["backbone_level"]
    (block,) = (block for block in layout.blocks if block.each == "level")
    kernels = [state.get(_names(block, index)[0]) for index in range(counts["level"])]
    from_backbone = sum(kernel is not None and kernel.shape[-1] == 1 for kernel in kernels)
    return counts["level"], from_backbone


def _has_third_convolution(layout: Layout, state: Mapping[str, Tensor]) -> bool:
    (block,) = (block for block in layout.blocks if block.each == "stage1")
    (row,) = (row for row in block.rows if row.ours == "conv3")
    return any(pair.theirs in state for pair in row_pairs(block, row, 0, _ANY))


def _has_own_heads(layout: Layout, state: Mapping[str, Tensor], num_layers: int) -> bool:
    """Return whether layers have separate heads, by names that only these have, or by values."""
    shared = {block.theirs for block in layout.blocks if block.when == "shared_heads"}
    own = [block for block in layout.blocks if block.when == "own_heads"]
    if any(_first_name(block) in state for block in own if block.theirs not in shared):
        return True
    return any(
        first in state and name in state and not state[first].equal(state[name])
        for block in own
        for index in range(1, num_layers)
        for first, name in zip(_names(block, 0), _names(block, index), strict=True)
    )
