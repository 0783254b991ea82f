"""The maintained implementation in transformers, and its weights under our names.

The key map is written out here once more, apart from the package, so that a mistake there does
not hide itself.
"""

import re

import torch
from torch import Tensor, nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

NUM_LAYERS = 2  # of each stack; the oracle needs at least 2 decoder layers
NUM_CLASSES = 7
NUM_QUERIES = 20

_RULES = (
    (r"^model\.level_embed", "memory_builder.level_embed"),
    (r"^model\.backbone\.model\.", "backbone.body."),
    (r"^model\.input_proj\.(\d+)\.0\.", r"neck.projections.\1."),
    (r"^model\.input_proj\.(\d+)\.1\.", r"neck.norms.\1."),
    (r"^model\.query_position_embeddings\.weight", "queries.embed"),
    (r"^model\.reference_points\.", "queries.reference_points."),
    (r"^model\.enc_output\.", "queries.memory_proj."),
    (r"^model\.enc_output_norm\.", "queries.memory_norm."),
    (r"^model\.pos_trans\.", "queries.query_proj."),
    (r"^model\.pos_trans_norm\.", "queries.query_norm."),
    (r"^model\.(encoder|decoder)\.layers\.", r"\1.layers."),
    (r"^(encoder.*)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^(encoder.*)\.final_layer_norm\.", r"\1.norm2."),
    (r"^(decoder.*)\.self_attn_layer_norm\.", r"\1.norm1."),
    (r"^(decoder.*)\.encoder_attn_layer_norm\.", r"\1.norm2."),
    (r"^(decoder.*)\.final_layer_norm\.", r"\1.norm3."),
    (r"\.encoder_attn\.", ".cross_attn."),
    (r"\.mlp\.fc([12])\.", r".linear\1."),
    (r"\.o_proj\.", ".out_proj."),
    (rf"^class_embed\.{NUM_LAYERS}\.", "queries.class_head."),
    (rf"^bbox_embed\.{NUM_LAYERS}\.layers\.", "queries.box_head.mlp.layers."),
    (r"^class_embed\.(\d+)\.", r"decoder.class_heads.\1."),
    (r"^bbox_embed\.(\d+)\.layers\.", r"decoder.box_heads.\1.mlp.layers."),
)


def build_oracle(
    *, single_scale: bool = False, box_refinement: bool = False, two_stage: bool = False
) -> DeformableDetrForObjectDetection:
    """A small model of theirs with every weight randomised."""
    config = DeformableDetrConfig(
        encoder_layers=NUM_LAYERS,
        decoder_layers=NUM_LAYERS,
        num_feature_levels=1 if single_scale else 4,
        with_box_refine=box_refinement,
        two_stage=two_stage,
        num_labels=NUM_CLASSES,
        num_queries=NUM_QUERIES,
        two_stage_num_proposals=NUM_QUERIES,
        auxiliary_loss=True,
        tie_word_embeddings=False,
    )
    if single_scale:
        config.backbone_config.out_indices = [4]
    model = DeformableDetrForObjectDetection(config)
    _set_heads(model, shared=not box_refinement, two_stage=two_stage)
    randomize(model)
    return model.eval()


def _set_heads(model: DeformableDetrForObjectDetection, *, shared: bool, two_stage: bool) -> None:
    """Share or separate the layers' heads as the variant has it, whatever was tied."""
    width = model.config.d_model
    count = len(model.class_embed)
    class_heads = [nn.Linear(width, NUM_CLASSES) for _ in range(count)]
    box_heads = [type(model.bbox_embed[0])(width, width, 4, 3) for _ in range(count)]
    if shared:
        class_heads, box_heads = class_heads[:1] * count, box_heads[:1] * count
    model.class_embed = nn.ModuleList(class_heads)
    model.bbox_embed = nn.ModuleList(box_heads)
    if not shared:
        model.model.decoder.bbox_embed = model.bbox_embed
    if two_stage:
        model.model.decoder.class_embed = model.class_embed


@torch.no_grad()
def randomize(model: nn.Module, *, seed: int = 0) -> None:
    """Give every parameter and every batch statistic a value of a sane size, none of them zero."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            value = noise.abs() + 0.5
        elif tensor.ndim > 1:
            fan_in = tensor[0].numel()
            value = noise * fan_in**-0.5
        elif name.endswith("weight"):  # of a norm
            value = 1 + 0.1 * noise
        else:
            value = 0.1 * noise
        tensor.copy_(value)


def our_state_dict(oracle: DeformableDetrForObjectDetection) -> dict[str, Tensor]:
    """Their weights under our names and in our layout."""
    box_refinement = oracle.config.with_box_refine
    renamed = {}
    for name, tensor in oracle.state_dict().items():
        is_alias = name.startswith(("model.decoder.class_embed", "model.decoder.bbox_embed"))
        is_repeat = not box_refinement and re.match(r"(class|bbox)_embed\.[1-9]", name)
        if is_alias or is_repeat:
            continue
        for pattern, replacement in _RULES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return _join_projections(renamed)


def _join_projections(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value projections of the decoder's self-attention in one matrix."""
    joined = dict(state)
    for name in state:
        if ".self_attn.q_proj." in name:
            parts = [joined.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
            joined[name.replace("q_proj.", "in_proj_")] = torch.cat(parts)
    return joined
