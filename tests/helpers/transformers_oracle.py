"""Oracle: the implementation in transformers."""

import torch
from torch import nn
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection

from deformable_detr.boxes import inverse_sigmoid
from deformable_detr.structures import ImageBatch, ModelOutput, Predictions

NUM_LAYERS = 2  # of each stack; the oracle needs at least 2 decoder layers
NUM_CLASSES = 7
NUM_QUERIES = 20


def build_oracle(
    *,
    single_scale: bool = False,
    dilation: bool = False,
    box_refinement: bool = False,
    two_stage: bool = False,
) -> DeformableDetrForObjectDetection:
    """Build a small model of transformers with random weights."""
    config = DeformableDetrConfig(
        encoder_layers=NUM_LAYERS,
        decoder_layers=NUM_LAYERS,
        num_feature_levels=1 if single_scale else 4,
        use_timm_backbone=True,
        dilation=dilation,
        with_box_refine=box_refinement,
        two_stage=two_stage,
        num_labels=NUM_CLASSES,
        num_queries=NUM_QUERIES,
        two_stage_num_proposals=NUM_QUERIES,
        auxiliary_loss=True,
        tie_word_embeddings=False,
    )
    model = DeformableDetrForObjectDetection(config)
    _set_heads(model, shared=not box_refinement, two_stage=two_stage)
    randomize(model)
    return model.eval()


def _set_heads(model: DeformableDetrForObjectDetection, *, shared: bool, two_stage: bool) -> None:
    """Share or separate the heads of the layers as in the variant, regardless of tied weights."""
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
    """Randomize every parameter and batch statistic with a moderate magnitude, never zero."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in tensors.items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("running_var"):
            value = noise.abs() + 0.5
        elif tensor.ndim > 1:
            fan_in = tensor[0].numel()
            value = noise * fan_in**-0.5
        elif name.endswith("weight"):  # gamma of a norm
            value = 1 + 0.1 * noise
        else:
            value = 0.1 * noise
        tensor.copy_(value)


@torch.no_grad()
def oracle_output(oracle: DeformableDetrForObjectDetection, images: ImageBatch) -> ModelOutput:
    """Compute their predictions of every layer from its hidden states, as a `ModelOutput`."""
    output = oracle(pixel_values=images.images, pixel_mask=(~images.padding_mask).long())
    layers = []
    for index in range(oracle.config.decoder_layers):
        reference = output.init_reference_points
        if index > 0:
            reference = output.intermediate_reference_points[:, index - 1]
        query = output.intermediate_hidden_states[:, index]
        offsets = oracle.bbox_embed[index](query)
        offsets[..., : reference.shape[-1]] += inverse_sigmoid(reference)
        layers.append(Predictions(oracle.class_embed[index](query), offsets.sigmoid()))
    torch.testing.assert_close(output.logits, layers[-1].logits)
    torch.testing.assert_close(output.pred_boxes, layers[-1].boxes)
    encoder = None
    if oracle.config.two_stage:
        boxes = output.enc_outputs_coord_logits.sigmoid()
        encoder = Predictions(output.enc_outputs_class, boxes)
    return ModelOutput(layers[-1], tuple(layers[:-1]), encoder)
