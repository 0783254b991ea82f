"""How the tables of names are written, and what they say for a detector of a given structure.

A source's table is a tuple of blocks in the order of its state_dict. Templates hold `{i}`, the
index within the block, `{j}`, the index under our name, where that differs, and `{n}`, the number
of decoder layers.
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
    """One module of theirs and of ours, below the templates of its block.

    Attributes:
        theirs: name in the source.
        ours: name in this package.
        leaves: the tensors in it, named alike on both sides.
        when: in which structures it exists.
        part: which third of our tensor theirs is (query, key, value), or None for all of it.
        first_only: whether only the block's index 0 has it.
        zero_if_absent: whether the source leaves it out where it is all zeros.
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
    """Rows that exist once, or again for each layer, level or block of a stage."""

    theirs: str
    ours: str
    rows: tuple[NameRow, ...] = (NameRow("", ""),)
    each: Each = ""
    when: When = "always"


@dataclass(frozen=True)
class Layout:
    """A source's names.

    Attributes:
        source: what it is called.
        signature: a key that only its state_dicts have.
        blocks: the table, in the order of its state_dict.
        tied_may_be_absent: whether its files leave out all but one name of a tensor with several.
        normalize: brings the names of its files to those of the table.
    """

    source: str
    signature: str
    blocks: tuple[NameBlock, ...]
    tied_may_be_absent: bool = False
    normalize: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict


@dataclass(frozen=True)
class DetectorStructure:
    """What decides which tensors a detector has.

    Attributes:
        stage_blocks: residual blocks of each stage of the ResNet, as far as it is used.
        bottleneck: whether they are of three convolutions, as from ResNet-50 on.
        num_levels: L.
        num_backbone_levels: how many of them are the backbone's.
        encoder_layers: number of encoder layers.
        decoder_layers: number of decoder layers.
        box_refinement: whether every decoder layer has heads of its own.
        two_stage: whether queries come from proposals.
        learned_position: whether positions are learned.
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

    def has(self, when: When) -> bool:
        """Whether rows marked `when` exist."""
        match when:
            case "always":
                return True
            case "shared_heads":
                return not self.box_refinement
            case "own_heads":
                return self.box_refinement
            case "one_stage":
                return not self.two_stage
            case "two_stage":
                return self.two_stage
            case "bottleneck":
                return self.bottleneck
            case "learned_position":
                return self.learned_position

    def count(self, each: Each) -> int:
        """How many times a block marked `each` exists."""
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
    """A tensor of theirs and the tensor of ours that it is, or is a part of; see `NameRow`."""

    theirs: str
    ours: str
    part: int | None
    zero_if_absent: bool


def name_pairs(layout: Layout, structure: DetectorStructure) -> list[NamePair]:
    """Every tensor of a detector, in the order of the source's state_dict.

    One of ours stands there several times where the source gives it several names.
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
    """The tensors of one row at one index of its block."""
    ours_index = index + (structure.num_backbone_levels if block.each == "extra_level" else 0)
    numbers = {"i": index, "j": ours_index, "n": structure.decoder_layers}
    for leaf in row.leaves:
        theirs, ours = (
            ".".join(filter(None, (prefix, name, leaf))).format(**numbers)
            for prefix, name in ((block.theirs, row.theirs), (block.ours, row.ours))
        )
        yield NamePair(theirs, ours, row.part, row.zero_if_absent)
