"""Format of the name tables, and their expansion for a detector of a given structure.

A source's table is a tuple of blocks in the order of its state_dict. Templates contain `{i}`, the
index within the block, `{j}`, the index in our name if that differs, and `{n}`, the number of
decoder layers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

Each = Literal[
    "",
    "encoder_layer",
    "decoder_layer",
    "level",
    "backbone_level",
    "extra_level",
    "stage1",
    "stage2",
    "stage3",
    "stage4",
]
When = Literal[
    "always",
    "shared_heads",
    "own_heads",
    "one_stage",
    "two_stage",
    "bottleneck",
    "learned_position",
    "denoising",
]

WHOLE = ("",)  # the template names the tensor itself
AFFINE = ("weight", "bias")
FROZEN_NORM = ("weight", "bias", "running_mean", "running_var")
MS_DEFORM_ATTN = tuple(
    f"{part}.{leaf}"
    for part in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    for leaf in AFFINE
)
MULTIHEAD_ATTN = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
THREE_LAYERS = tuple(f"layers.{layer}.{leaf}" for layer in range(3) for leaf in AFFINE)


@dataclass(frozen=True)
class NameRow:
    """Module of theirs and the corresponding one of ours, relative to the block's templates.

    Attributes:
        theirs: name in the source.
        ours: name in this package.
        leaves: names of its tensors, the same on both sides.
        when: structures that have the module.
        part: index of the third of our tensor (query, key, value), or None for all of it.
        first_only: whether only index 0 of the block has the module.
        zero_if_absent: whether the source omits the tensor if it is all zeros.
    """

    theirs: str
    ours: str
    leaves: tuple[str, ...] = AFFINE
    when: When = "always"
    part: int | None = None
    first_only: bool = False
    zero_if_absent: bool = False


@dataclass(frozen=True)
class NameBlock:
    """Rows that exist once, or repeated for each layer, level or block of a stage."""

    theirs: str
    ours: str
    rows: tuple[NameRow, ...] = (NameRow("", ""),)
    each: Each = ""
    when: When = "always"


@dataclass(frozen=True)
class Layout:
    """Names of a source.

    Attributes:
        source: name of the source.
        signature: keys that together only its state_dicts have.
        blocks: table of names, in the order of its state_dict.
        is_dino: whether its model is DINO, with the structure's `dino`.
        position: temperature and offset of its sine positions, which no tensor reveals.
        position_settings: those of the two that are settings of its code; its files may have
            others then.
        position_note: configs of the source that have others, for a message.
        tied_may_be_absent: whether its files keep only one of several names of a tied tensor.
        normalize: function that maps the tensors of its files to those of the table.
        complete: function that adds to the tensors of the table what its loader demands.
    """

    source: str
    signature: tuple[str, ...]
    blocks: tuple[NameBlock, ...]
    is_dino: bool = False
    position: tuple[float, float] = (10000.0, -0.5)
    position_settings: tuple[Literal["temperature", "offset"], ...] = ()
    position_note: str = ""
    tied_may_be_absent: bool = False
    normalize: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    complete: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict

    @property
    def left_out(self) -> tuple[str, ...]:
        """Beginnings of our names of tensors, used only in training, that the source lacks."""
        return ("mimicking.",) if self.is_dino else ("mimicking.", "denoising.")


@dataclass(frozen=True)
class DetectorStructure:
    """Properties that determine a detector's set of tensors.

    Attributes:
        stage_blocks: number of residual blocks per stage of the ResNet, for the stages in use.
        bottleneck: whether blocks have three convolutions, as in ResNet-50 and deeper.
        num_levels: number of levels L.
        num_backbone_levels: number of levels that come from the backbone.
        encoder_layers: number of encoder layers.
        decoder_layers: number of decoder layers.
        box_refinement: whether each decoder layer refines the boxes of the layer before; it has
            its own heads then, unless `share_heads`.
        two_stage: whether queries are initialized from proposals.
        learned_position: whether position embeddings are learned.
        share_heads: whether all layers of a decoder with box refinement have the same heads.
        dino: whether the detector has all parts of DINO except denoising.
        denoising: whether it has the label embedding of denoising.
    """

    stage_blocks: tuple[int, ...]
    bottleneck: bool
    num_levels: int
    num_backbone_levels: int
    encoder_layers: int
    decoder_layers: int
    box_refinement: bool
    two_stage: bool
    learned_position: bool = False
    share_heads: bool = False
    dino: bool = False
    denoising: bool = False

    def has(self, when: When) -> bool:
        """Return whether rows marked `when` exist."""
        match when:
            case "always":
                return True
            case "shared_heads":
                return not self.box_refinement or self.share_heads
            case "own_heads":
                return self.box_refinement and not self.share_heads
            case "one_stage":
                return not self.two_stage
            case "two_stage":
                return self.two_stage
            case "bottleneck":
                return self.bottleneck
            case "learned_position":
                return self.learned_position
            case "denoising":
                return self.denoising

    def count(self, each: Each) -> int:
        """Return the number of repetitions of a block marked `each`."""
        match each:
            case "":
                return 1
            case "encoder_layer":
                return self.encoder_layers
            case "decoder_layer":
                return self.decoder_layers
            case "level":
                return self.num_levels
            case "backbone_level":
                return self.num_backbone_levels
            case "extra_level":
                return self.num_levels - self.num_backbone_levels
            case _:
                stage = int(each.removeprefix("stage"))
                return self.stage_blocks[stage - 1] if stage <= len(self.stage_blocks) else 0


@dataclass(frozen=True)
class NamePair:
    """Tensor of theirs, and the tensor of ours that it equals or is part of; see `NameRow`."""

    theirs: str
    ours: str
    part: int | None
    zero_if_absent: bool


def name_pairs(layout: Layout, structure: DetectorStructure) -> list[NamePair]:
    """Return all tensors of a detector, in the order of the source's state_dict.

    A tensor of ours is listed once per name that the source gives it.
    """
    return [
        pair
        for block in layout.blocks
        if structure.has(block.when)
        for index in range(structure.count(block.each))
        for row in block.rows
        if structure.has(row.when) and (index == 0 or not row.first_only)
        for pair in row_pairs(block, row, index, structure)
    ]


def row_pairs(
    block: NameBlock, row: NameRow, index: int, structure: DetectorStructure
) -> Iterator[NamePair]:
    """Yield the tensors of one row at one index of its block."""
    ours_index = index + (structure.num_backbone_levels if block.each == "extra_level" else 0)
    numbers = {"i": index, "j": ours_index, "n": structure.decoder_layers}
    for leaf in row.leaves:
        theirs, ours = (
            ".".join(filter(None, (prefix, name, leaf))).format(**numbers)
            for prefix, name in ((block.theirs, row.theirs), (block.ours, row.ours))
        )
        yield NamePair(theirs, ours, row.part, row.zero_if_absent)
