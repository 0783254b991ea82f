"""Names of heads and queries, which most sources share with the official repository."""

from deformable_detr.conversion.layout import AFFINE, THREE_LAYERS, Each, NameBlock, NameRow

_MLP = (NameRow("", "mlp", THREE_LAYERS),)
_TWO_LAYERS = tuple(f"layers.{layer}.{leaf}" for layer in range(2) for leaf in AFFINE)


def heads(
    class_head: str = "class_embed",
    box_head: str = "bbox_embed",
    *,
    box_rows: tuple[NameRow, ...] = _MLP,
) -> tuple[NameBlock, ...]:
    """Return the heads of all decoder layers by index, then those of the proposals."""
    return (
        *_layers(class_head, "decoder.class_heads", (NameRow("", ""),)),
        NameBlock(f"{class_head}.{{n}}", "queries.class_head", when="two_stage"),
        *_layers(box_head, "decoder.box_heads", box_rows),
        NameBlock(f"{box_head}.{{n}}", "queries.box_head", box_rows, when="two_stage"),
    )


def layer_heads(class_head: str, box_head: str) -> tuple[NameBlock, ...]:
    """Return the heads of all decoder layers by index, without those of the proposals."""
    return (
        *_layers(box_head, "decoder.box_heads", _MLP),
        *_layers(class_head, "decoder.class_heads", (NameRow("", ""),)),
    )


def dino_decoder(theirs: str) -> tuple[NameBlock, ...]:
    """Return what the decoder of DINO, `theirs`, has besides layers and heads."""
    return (
        NameBlock(f"{theirs}.norm", "decoder.norm"),
        NameBlock(
            f"{theirs}.ref_point_head", "decoder.position_head", (NameRow("", "", _TWO_LAYERS),)
        ),
    )


def _layers(theirs: str, ours: str, rows: tuple[NameRow, ...]) -> tuple[NameBlock, NameBlock]:
    """Map their heads, one per layer, to ours, which are one if the layers share it."""
    theirs = f"{theirs}.{{i}}"
    return (
        NameBlock(theirs, f"{ours}.0", rows, each="decoder_layer", when="shared_heads"),
        NameBlock(theirs, f"{ours}.{{i}}", rows, each="decoder_layer", when="own_heads"),
    )


def heads_of_refining_decoder(theirs: str) -> tuple[NameBlock, ...]:
    """Return the heads' second names, inside the decoder `theirs` that refines with them."""
    boxes, classes = f"{theirs}.bbox_embed", f"{theirs}.class_embed"
    each: Each = "decoder_layer"
    return (
        NameBlock(f"{boxes}.{{i}}", "decoder.box_heads.{i}", _MLP, each=each, when="own_heads"),
        NameBlock(f"{boxes}.{{n}}", "queries.box_head", _MLP, when="two_stage"),
        NameBlock(f"{classes}.{{i}}", "decoder.class_heads.{i}", each=each, when="two_stage"),
        NameBlock(f"{classes}.{{n}}", "queries.class_head", when="two_stage"),
    )


def queries(theirs: str) -> tuple[NameBlock, ...]:
    """Return the layers that build queries from proposals, or their reference points."""
    return (
        NameBlock(f"{theirs}.enc_output", "queries.memory_proj", when="two_stage"),
        NameBlock(f"{theirs}.enc_output_norm", "queries.memory_norm", when="two_stage"),
        NameBlock(f"{theirs}.pos_trans", "queries.query_proj", when="two_stage"),
        NameBlock(f"{theirs}.pos_trans_norm", "queries.query_norm", when="two_stage"),
        NameBlock(f"{theirs}.reference_points", "queries.reference_points", when="one_stage"),
    )
