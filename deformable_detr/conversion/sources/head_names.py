"""Names of heads and queries, which most sources took over from the official repository."""

from deformable_detr.conversion.layout import THREE_LAYERS, Block, Each, Row

_MLP = (Row("", "mlp", THREE_LAYERS),)


def heads(
    class_head: str = "class_embed",
    box_head: str = "bbox_embed",
    *,
    box_rows: tuple[Row, ...] = _MLP,
) -> tuple[Block, ...]:
    """The heads of all decoder layers, by their number, then those of the proposals."""
    return (
        *_layers(class_head, "decoder.class_heads", (Row("", ""),)),
        Block(f"{class_head}.{{n}}", "queries.class_head", when="two_stage"),
        *_layers(box_head, "decoder.box_heads", box_rows),
        Block(f"{box_head}.{{n}}", "queries.box_head", box_rows, when="two_stage"),
    )


def _layers(theirs: str, ours: str, rows: tuple[Row, ...]) -> tuple[Block, Block]:
    """Theirs are as many as there are layers; ours are one where the layers share it."""
    theirs = f"{theirs}.{{i}}"
    return (
        Block(theirs, f"{ours}.0", rows, each="decoder_layer", when="shared_heads"),
        Block(theirs, f"{ours}.{{i}}", rows, each="decoder_layer", when="own_heads"),
    )


def heads_of_refining_decoder(theirs: str) -> tuple[Block, ...]:
    """The heads' second names, below the decoder `theirs` that refines with them."""
    boxes, classes = f"{theirs}.bbox_embed", f"{theirs}.class_embed"
    each: Each = "decoder_layer"
    return (
        Block(f"{boxes}.{{i}}", "decoder.box_heads.{i}", _MLP, each=each, when="own_heads"),
        Block(f"{boxes}.{{n}}", "queries.box_head", _MLP, when="two_stage"),
        Block(f"{classes}.{{i}}", "decoder.class_heads.{i}", each=each, when="two_stage"),
        Block(f"{classes}.{{n}}", "queries.class_head", when="two_stage"),
    )


def queries(theirs: str) -> tuple[Block, ...]:
    """What makes queries of proposals, or reference points of learned queries."""
    return (
        Block(f"{theirs}.enc_output", "queries.memory_proj", when="two_stage"),
        Block(f"{theirs}.enc_output_norm", "queries.memory_norm", when="two_stage"),
        Block(f"{theirs}.pos_trans", "queries.query_proj", when="two_stage"),
        Block(f"{theirs}.pos_trans_norm", "queries.query_norm", when="two_stage"),
        Block(f"{theirs}.reference_points", "queries.reference_points", when="one_stage"),
    )
