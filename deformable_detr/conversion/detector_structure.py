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
from deformable_detr.conversion.recognition import DINO_SOURCES, SOURCES
from deformable_detr.layers.position import LearnedPositionEmbedding, SinePositionEmbedding
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
    denoising=True,
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
    is_dino = _is_dino(model)
    _require_known_parts(model, is_dino=is_dino)
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
        share_heads=model.decoder.box_refinement and len(model.decoder.class_heads) == 1,
        dino=is_dino,
        denoising=model.denoising is not None,
    )


def ranks_by_class(model: DeformableDETR) -> bool:
    """Return whether the rows of the proposals' class head are classes, not only objectness."""
    return isinstance(model.queries, ProposalQueries) and model.queries.ranking == "class"


def _is_dino(model: DeformableDETR) -> bool:
    """Return whether a model has the settings of DINO.

    Raises:
        ValueError: it has some of them, which no other implementation does.
    """
    queries, decoder = model.queries, model.decoder
    parts = {
        "decoder.position reference": decoder.position_head is not None,
        "decoder.look_forward_twice true": decoder.look_forward_twice,
        "queries.content learned": isinstance(queries, ProposalQueries)
        and queries.content is not None,
        "queries.ranking class": ranks_by_class(model),
    }
    has = [name for name, is_there in parts.items() if is_there]
    lacks = [name for name, is_there in parts.items() if not is_there]
    if has and lacks:
        raise ValueError(
            "model must have all settings of DINO or none of them for its weights to have names "
            f"elsewhere, got {', '.join(has)} without {', '.join(lacks)}; convert it to native"
        )
    return not lacks


def _require_known_parts(model: DeformableDETR, *, is_dino: bool) -> None:
    """Raise for settings other sources lack and that names and shapes do not reveal."""
    queries, decoder, position = model.queries, model.decoder, model.memory_builder.position
    if isinstance(queries, ProposalQueries):
        own_features = not is_dino and not queries.content_of_box
        if own_features or queries.base_size != _BASE_SIZE:
            content = "memory" if own_features else "box"
            raise ValueError(
                "two-stage queries must have content 'box' and base_size "
                f"{_BASE_SIZE:g} elsewhere, got {content!r} and {queries.base_size:g}"
            )
    if decoder.center_offset != "image":
        raise ValueError(
            "two-stage queries must have center_offset 'image' elsewhere, got "
            f"{decoder.center_offset!r}; convert it to native"
        )
    if decoder.box_refinement and not is_dino and len(decoder.class_heads) < len(decoder.layers):
        raise ValueError(
            "model must have decoder.share_heads false with box_refinement elsewhere, except in "
            "DINO, got true; convert it to native"
        )
    if isinstance(position, LearnedPositionEmbedding):
        cells = position.row_embed.num_embeddings
        if cells != _MAX_CELLS:
            raise ValueError(
                f"learned positions must have max_cells {_MAX_CELLS} elsewhere, got {cells}"
            )


def require_layout(model: DeformableDETR, structure: DetectorStructure, layout: Layout) -> None:
    """Raise if a source has no model like this one, though its names may fit.

    Args:
        model: the model.
        structure: its structure.
        layout: table of the source.

    Raises:
        ValueError: it is DINO and the source's is not, or the reverse, or has other positions.
    """
    if structure.dino != layout.is_dino:
        kinds = ("a plain Deformable DETR", "DINO")
        wanted, given = kinds[layout.is_dino], kinds[structure.dino]
        fitting = (source for source in SOURCES[1:] if (source in DINO_SOURCES) == structure.dino)
        raise ValueError(
            f"model must be {wanted} for the layout of {layout.source}, got {given}; its layouts "
            f"are native, {', '.join(fitting)}"
        )
    position = model.memory_builder.position
    if not isinstance(position, SinePositionEmbedding):
        return
    own = {"temperature": position.temperature, "offset": position.offset}
    for (name, value), theirs in zip(own.items(), layout.position, strict=True):
        if name not in layout.position_settings and value != theirs:
            raise ValueError(
                f"model must have position.{name} {theirs:g}, the only one of {layout.source}, got "
                f"{value:g}; convert it to native"
            )


def structure_of_names(layout: Layout, state: Mapping[str, Tensor]) -> DetectorStructure:
    """Return the structure of the detector that a source's tensors belong to.

    Repeated blocks are counted by the indices that are present for the names of the table.
    """
    counts: dict[Each, int] = {}
    for block in layout.blocks:
        if block.each and block.when == "always":
            counts.setdefault(block.each, _count(block, state))
    two_stage = layout.is_dino or _has(layout, state, "two_stage")
    own_heads = _has_own_heads(layout, state, counts["decoder_layer"])
    num_levels, num_backbone_levels = _levels(layout, state, counts)
    stages = [counts[each] for each in ("stage1", "stage2", "stage3", "stage4")]
    return DetectorStructure(
        stage_blocks=tuple(itertools.takewhile(bool, stages)),
        bottleneck=_has_third_convolution(layout, state),
        num_levels=num_levels,
        num_backbone_levels=num_backbone_levels,
        encoder_layers=counts["encoder_layer"],
        decoder_layers=counts["decoder_layer"],
        box_refinement=two_stage or own_heads,
        two_stage=two_stage,
        learned_position=_has(layout, state, "learned_position"),
        share_heads=layout.is_dino and not own_heads,
        dino=layout.is_dino,
        denoising=has_denoising(layout, state),
    )


def has_denoising(layout: Layout, state: Mapping[str, Tensor]) -> bool:
    """Return whether a source's tensors have the label embedding of denoising."""
    return _has(layout, state, "denoising")


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
