"""DeformableDETR: the complete forward pass, readable from top to bottom."""

from collections.abc import Sequence

from torch import Tensor, nn
from typing_extensions import Self

from deformable_detr.layers.attention import MSDeformAttn
from deformable_detr.layers.deform_conv import OffsetGenerator
from deformable_detr.layers.deform_kernel import DeformKernelConv2d
from deformable_detr.models.backbones.base import Backbone
from deformable_detr.models.decoder import DeformableTransformerDecoder
from deformable_detr.models.denoising import DenoisingQueries
from deformable_detr.models.encoder import DeformableTransformerEncoder
from deformable_detr.models.memory import MemoryBuilder, valid_share
from deformable_detr.models.mimicking import FeatureMimicking, MimicFeatures, Pairs
from deformable_detr.models.necks.base import Neck
from deformable_detr.models.proposals import ProposalQueries
from deformable_detr.models.queries import LearnedQueries
from deformable_detr.structures import ImageBatch, ModelOutput, Target


class DeformableDETR(nn.Module):
    """Deformable DETR (Zhu et al., ICLR 2021): an image in, a set of boxes out.

    Args:
        backbone: images -> feature maps.
        neck: feature maps -> pyramid of the model's width.
        memory_builder: pyramid -> row of tokens with positions.
        encoder: memory -> memory.
        queries: memory -> queries; learned, or chosen from the memory (two-stage).
        decoder: queries and memory -> predictions of every layer.
        denoising: additional queries in training, or None; needs `ProposalQueries`.
        mimicking: feature mimicking, an additional loss in training, or None; not part of the
            forward pass.
        frozen_roles: roles whose parameters are not trained, see `parameter_roles`.

    A module that has parameters, none of which is trained, stays in eval mode with all that it
    contains: its statistics are not updated, and it applies no dropout.

    Raises:
        ValueError: no parameter has one of the `frozen_roles`, or there is denoising with learned
            queries, whose references are points.
    """

    def __init__(
        self,
        *,
        backbone: Backbone,
        neck: Neck,
        memory_builder: MemoryBuilder,
        encoder: DeformableTransformerEncoder,
        queries: LearnedQueries | ProposalQueries,
        decoder: DeformableTransformerDecoder,
        denoising: DenoisingQueries | None = None,
        mimicking: FeatureMimicking | None = None,
        frozen_roles: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if denoising is not None and not isinstance(queries, ProposalQueries):
            raise ValueError(
                f"queries must be ProposalQueries for denoising, got {type(queries).__name__}"
            )
        self.backbone = backbone
        self.neck = neck
        self.memory_builder = memory_builder
        self.encoder = encoder
        self.queries = queries
        self.decoder = decoder
        self.denoising = denoising
        self.mimicking = mimicking
        self._freeze(frozen_roles)
        self.train(self.training)

    def forward(
        self,
        images: ImageBatch | Sequence[Tensor],
        targets: Sequence[Target] | None = None,
    ) -> ModelOutput:
        """Detect objects.

        Args:
            images: a padded batch, or normalized (channels, h, w) images of any sizes, with the
                channels of the backbone.
            targets: one per image, on its device, for denoising: without them, and in eval mode,
                the model has the ordinary queries only.

        Returns:
            Predictions of Q queries per image; Q is `num_queries`, or the number of tokens if a
            two-stage model gets images with fewer tokens. They do not depend on `targets`.

        Raises:
            ValueError: there are not as many targets as images, or the images have another number
                of channels than the backbone.
        """
        if not isinstance(images, ImageBatch):
            images = ImageBatch.from_images(images)
        if images.images.shape[1] != self.backbone.in_channels:
            raise ValueError(
                f"images must have {self.backbone.in_channels} channels, as the model's first "
                f"convolution, got {images.images.shape[1]}"
            )
        if targets is not None and len(targets) != len(images):
            raise ValueError(
                f"targets must be one for each of {len(images)} images, got {len(targets)}"
            )
        images = self.backbone.pad(images)
        features = self.backbone(images.images)
        pyramid = self.neck(features, images.padding_mask)
        valid_ratio = valid_share(images.padding_mask) if self.backbone.multiple > 1 else None
        memory = self.encoder(self.memory_builder(pyramid, valid_ratio))
        queries, proposals = self.queries(memory)
        if not self.training or self.denoising is None or targets is None:
            *auxiliary, last = self.decoder(queries, memory)
            return ModelOutput(last, tuple(auxiliary), proposals)
        noisy = self.denoising(targets)
        assert isinstance(self.queries, ProposalQueries)  # checked by the constructor
        references, dtype = noisy.reference_points, memory.tokens.dtype
        query_pos, _ = self.queries.from_boxes(references, dtype=dtype)
        layers = self.decoder(noisy.before(queries, query_pos), memory)
        denoised, (*auxiliary, last) = noisy.split(layers)
        return ModelOutput(last, tuple(auxiliary), proposals, denoised)

    def mimic(
        self,
        images: ImageBatch,
        output: ModelOutput,
        targets: Sequence[Target],
        matches: Sequence[Pairs],
    ) -> MimicFeatures:
        """Compute the features of matched queries and of crops of their objects, for the loss.

        Args:
            images: input of `forward`.
            output: output of `forward` for these images.
            targets: one per image.
            matches: matches of the last decoder layer, one per image.
        """
        hidden = output.last.hidden
        assert self.mimicking is not None  # callers check the weight of its loss
        assert hidden is not None  # every decoder layer returns it
        return self.mimicking(self.backbone, images, hidden, targets, matches)

    def _freeze(self, frozen_roles: Sequence[str]) -> None:
        """Freeze the parameters of these roles."""
        roles = self.parameter_roles()
        for role in frozen_roles:
            if role not in roles.values():
                found = ", ".join(sorted(set(roles.values())))
                raise ValueError(f"frozen_roles must be roles of this model ({found}), got {role}")
        for name, parameter in self.named_parameters():
            if roles[name] in frozen_roles:
                parameter.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all modules, but keep modules without trained parameters in eval mode."""
        super().train(mode)
        for module in self.modules():
            parameters = list(module.parameters())
            if parameters and not any(parameter.requires_grad for parameter in parameters):
                for part in module.modules():  # not eval(), which of `self` calls this method
                    part.training = False
        return self

    def parameter_roles(self) -> dict[str, str]:
        """Return the role of every parameter by name; it determines the learning rate.

        "sampling" is the role of parameters that predict sampling or reference points, called
        "backbone_sampling" in the backbone; "backbone" is that of the backbone's other parameters,
        and "default" that of all others.
        """
        roles = dict.fromkeys((name for name, _ in self.named_parameters()), "default")
        for module_name, module in self.named_modules():
            match module:
                case MSDeformAttn():
                    part, role = "sampling_offsets.", "sampling"
                case LearnedQueries():
                    part, role = "reference_points.", "sampling"
                case Backbone():
                    part, role = "", "backbone"
                case OffsetGenerator():
                    part, role = "", "sampling"
                case DeformKernelConv2d():
                    part, role = "fc.", "sampling"
                case _:
                    continue
            prefix = f"{module_name}.{part}"
            for name in roles:
                if name.startswith(prefix):
                    # named_modules yields a module after the module that contains it.
                    roles[name] = f"backbone_{role}" if roles[name] == "backbone" else role
        return roles
