"""Fine-tuning: transfer of weights from one detector to another, by tensor and class names."""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from deformable_detr.engine.checkpoints.row_matching import MatchedRows, match_rows
from deformable_detr.finite import require_finite_weights
from deformable_detr.labels import LabelSpace
from deformable_detr.models.deformable_detr import DeformableDETR
from deformable_detr.models.denoising import DenoisingQueries
from deformable_detr.models.heads import ClassHead
from deformable_detr.models.proposals import ProposalQueries
from deformable_detr.models.queries import LearnedQueries

BACKBONE = "backbone."
_BATCH_COUNTER = "num_batches_tracked"  # of batch norms; frozen ones have none
_LAYER_HEAD = re.compile(r"^(decoder\.(?:class|box)_heads)\.\d+\.")
_EXCHANGED = (BACKBONE, "neck.")  # parts that have alternative implementations
_LEAST_SHARE = 0.5  # of the tensors of all other parts that must match the file
_MAX_LAYERS = 8  # in one line of a report


@dataclass(frozen=True)
class TransferReport:
    """Summary of a transfer: tensors that were kept, reinitialized and ignored.

    A tensor of which some rows were copied, such as a class head's, is in both `kept` and
    `reinitialized`.

    Attributes:
        kept: names of the model's tensors that come from the file.
        reinitialized: names of those that keep their initialization, each with the reason.
        ignored: names of the file's tensors that were not used.
        notes: summary of the classes kept, started from scratch and dropped.
    """

    kept: tuple[str, ...]
    reinitialized: Mapping[str, str]
    ignored: tuple[str, ...]
    notes: tuple[str, ...]

    def describe(self) -> list[tuple[str, str]]:
        """Return the report in a few lines, each a heading and its text."""
        total = len({*self.kept, *self.reinitialized})
        initial = self.reinitialized
        in_part = {name: initial[name] for name in self.kept if name in initial}
        return [
            ("kept", f"{len(self.kept)} of the model's {total} tensors"),
            ("reinitialized", f"{len(initial)}{_summarize(initial, in_part)}"),
            ("ignored", f"{len(self.ignored)} of the file's{_summarize(self.ignored, {})}"),
            *(("classes", note) for note in self.notes),
        ]


def transfer_weights(
    model: DeformableDETR,
    state_dict: Mapping[str, Tensor],
    *,
    old_classes: LabelSpace | None,
    new_classes: LabelSpace,
    what: str,
    ranked_by_class: bool = False,
    new_in_backbone: Collection[str] = (),
) -> TransferReport:
    """Copy another detector's weights into a new model wherever they have the same meaning.

    - A decoder's class head and the label embedding of denoising keep the rows of the classes that
      have the same name; the others keep their initialization.
    - The class head of two-stage proposals does so too if they are ranked by class, here and in the
      file. If they are not, it keeps its rows in order: row 0 means "an object of any class" and
      ranks the proposals, for any set of classes; the other rows have no meaning. If they are in
      only one of the two, it keeps its initialization.
    - Heads that all layers of a two-stage file share become those of each layer.
    - Learned queries, and learned content of two-stage queries, keep their first rows, as many as
      there are in both.
    - The backbone is kept as a whole or not at all, except for tensors that are new in it.
    - Any other layer is kept if the file has all its tensors in the model's shapes.

    Args:
        model: newly built.
        state_dict: the weights by our names.
        old_classes: classes of the rows of its class heads; None if unknown.
        new_classes: classes of the rows of the model's class heads.
        what: description of the weights for errors, as in "checkpoint runs/a/best.pth".
        ranked_by_class: whether the proposals of the weights are ranked by class.
        new_in_backbone: names of the model's tensors that adapt to the others, such as those of
            replaced convolutions; the backbone matches even if the weights do not have them.

    Raises:
        ValueError: the file matches less than half of the model, its classes cannot be matched,
            or a weight to be copied is not finite; the model is unchanged.
    """
    own = model.state_dict()
    state_dict = _with_heads_of_all_layers(own, state_dict)
    by_rows = _rows_to_keep(
        model, own, state_dict, old_classes, new_classes, what, ranked_by_class=ranked_by_class
    )
    whole = _whole_tensors(own, state_dict, new_in_backbone) - by_rows.keys()
    merged = {name: state_dict[name] for name in own if name in whole}
    for name, rows in by_rows.items():
        if rows.pairs:
            merged[name] = _with_rows(own[name], state_dict[name], rows.pairs)
    _require_enough(own, merged, what)
    require_finite_weights(merged, what)
    _require_same_kind(own, merged, what)
    model.load_state_dict({**own, **merged})
    return TransferReport(
        kept=tuple(name for name in own if name in merged),
        reinitialized=_reinitialized(own, state_dict, merged, by_rows),
        ignored=tuple(name for name in _without_counters(state_dict) if name not in merged),
        notes=tuple(dict.fromkeys(note for rows in by_rows.values() for note in rows.notes)),
    )


def _with_heads_of_all_layers(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> Mapping[str, Tensor]:
    """Return a file's weights with its heads for each layer of the model, if it has one pair.

    Only where layers refine boxes, as all do in two-stage models: without it, the one head predicts
    boxes from points that stay the same.
    """
    if "queries.class_head.weight" not in given or "decoder.class_heads.1.weight" in given:
        return given
    firsts = {name: _LAYER_HEAD.sub(r"\1.0.", name) for name in own}
    return {**given, **{name: given[first] for name, first in firsts.items() if first in given}}


def holds_backbone(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> bool:
    """Return whether a file holds a detector's whole backbone.

    It may have further blocks after the detector's last one. Further layers within a block belong
    to a deeper network, which does not match: the following layers depend on all of them.

    Args:
        own: the detector's state_dict.
        given: the file's weights by our names.
    """
    expected, found = _backbone_shapes(own), _backbone_shapes(given)
    blocks = {_block(name) for name in expected}
    return expected == {name: shape for name, shape in found.items() if _block(name) in blocks}


def _rows_to_keep(
    model: DeformableDETR,
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    old_classes: LabelSpace | None,
    new_classes: LabelSpace,
    what: str,
    *,
    ranked_by_class: bool,
) -> dict[str, MatchedRows]:
    """Return the rows to copy, for each tensor that is copied by rows and has the same width."""
    plan: dict[str, MatchedRows] = {}
    for names, meaning in _tensors_of_rows(model, ranked_by_class=ranked_by_class):
        if not all(_same_width(own[name], given.get(name)) for name in names):
            continue
        num_new, num_old = len(own[names[0]]), len(given[names[0]])
        if meaning == "classes":
            rows = match_rows(old_classes, new_classes, num_old=num_old, num_new=num_new, what=what)
        else:
            count = min(num_new, num_old) if meaning == "order" else 0
            rows = MatchedRows(tuple((row, row) for row in range(count)), notes=())
        plan |= dict.fromkeys(names, rows)
    return plan


def _tensors_of_rows(
    model: DeformableDETR, *, ranked_by_class: bool
) -> Iterator[tuple[list[str], Literal["classes", "order", "other"]]]:
    """Yield the names of tensors that are copied by rows, and what their rows mean.

    "other" means something else than in the file.
    """
    proposals = [m for m in model.modules() if isinstance(m, ProposalQueries)]
    by_class = {id(module.class_head): module.ranking == "class" for module in proposals}
    for name, module in model.named_modules():
        match module:
            case LearnedQueries():
                yield [f"{name}.embed"], "order"
            case ProposalQueries(content=nn.Parameter()):
                yield [f"{name}.content"], "order"
            case DenoisingQueries():
                yield [f"{name}.label_embed.weight"], "classes"
            case ClassHead():
                names = [f"{name}.weight", f"{name}.bias"]
                if by_class.get(id(module), ranked_by_class) != ranked_by_class:
                    yield names, "other"
                else:
                    yield names, "classes" if by_class.get(id(module), True) else "order"


def _same_width(value: Tensor, other: Tensor | None) -> bool:
    """Return whether the shapes of two tensors differ at most in the number of rows."""
    return other is not None and other.ndim == value.ndim and other.shape[1:] == value.shape[1:]


def _with_rows(value: Tensor, other: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Return `value` with some rows replaced by rows of `other`."""
    merged = value.clone()
    rows, others = (list(numbers) for numbers in zip(*pairs, strict=True))
    merged[rows] = other[others].to(merged)
    return merged


def _whole_tensors(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], new_in_backbone: Collection[str]
) -> set[str]:
    """Return the names of the tensors that can be copied as a whole."""
    layers: dict[str, list[str]] = {}
    for name in own:
        if not name.startswith(BACKBONE):
            layers.setdefault(name.rpartition(".")[0], []).append(name)
    whole = {
        name
        for names in layers.values()
        if all(name in given and given[name].shape == own[name].shape for name in names)
        for name in names
    }
    wanted = {name: value for name, value in own.items() if name not in new_in_backbone}
    if holds_backbone(wanted, given):
        whole |= {name for name in own if name.startswith(BACKBONE) and name in given}
    return whole


def _backbone_shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {
        name: tuple(tensors[name].shape)
        for name in _without_counters(tensors)
        if name.startswith(BACKBONE)
    }


def _block(name: str) -> str:
    """Return `backbone.body.layer3` for `backbone.body.layer3.0.conv1.weight`."""
    return ".".join(name.split(".")[:3])


def _without_counters(tensors: Mapping[str, Tensor]) -> list[str]:
    return [name for name in tensors if not name.endswith(_BATCH_COUNTER)]


def _require_enough(own: Mapping[str, Tensor], kept: Mapping[str, Tensor], what: str) -> None:
    """Raise if a file matches too little of the model."""
    wanted = [name for name in own if not name.startswith(_EXCHANGED)]
    matching = [name for name in wanted if name in kept]
    if len(matching) < _LEAST_SHARE * len(wanted):
        first = next(name for name in wanted if name not in kept)
        raise ValueError(
            f"{what} must match at least half of the model's {len(wanted)} tensors outside the "
            f"backbone and the neck, got {len(matching)}, first mismatch: {first}; use the model "
            "settings it was trained with, or, for a backbone alone, model.backbone.weights=FILE"
        )


def _require_same_kind(own: Mapping[str, Tensor], kept: Mapping[str, Tensor], what: str) -> None:
    """Raise if integers are given for floating-point numbers."""
    for name, value in kept.items():
        if value.is_floating_point() != own[name].is_floating_point():
            raise ValueError(f"{name} of {what} must be {own[name].dtype}, got {value.dtype}")


def _reinitialized(
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    kept: Mapping[str, Tensor],
    by_rows: Mapping[str, MatchedRows],
) -> dict[str, str]:
    """Return the tensors that are not, or only in part, from the file, with the reasons."""
    reasons = {}
    for name in _without_counters(own):
        value, other = own[name], given.get(name)
        if name in by_rows:
            num_initial = len(value) - len(by_rows[name].pairs)
            if num_initial:
                reasons[name] = f"{num_initial} of {len(value)} rows"
        elif name not in kept:
            if other is None:
                reasons[name] = "not in the file"
            elif other.shape != value.shape:
                reasons[name] = f"{tuple(value.shape)}, in the file {tuple(other.shape)}"
            else:
                reasons[name] = "part of a layer or backbone that does not match"
    return reasons


def _summarize(names: Iterable[str], remarks: Mapping[str, str]) -> str:
    """Return `: a.*.b x 4 (remark), c`: the first layers, with equal layers of a stack merged."""
    layers = Counter((_layer(name), remarks.get(name, "")) for name in names)
    if not layers:
        return ""
    shown = [
        layer + (f" x {count}" if count > 1 else "") + (f" ({remark})" if remark else "")
        for (layer, remark), count in list(layers.items())[:_MAX_LAYERS]
    ]
    rest = sum(list(layers.values())[_MAX_LAYERS:])
    return ": " + ", ".join(shown) + (f", and {rest} more" if rest else "")


def _layer(name: str) -> str:
    """Return `decoder.layers.*.linear1` for `decoder.layers.0.linear1.weight`."""
    if name.startswith(BACKBONE):
        return "backbone"
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", re.sub(r"\.(weight|bias)$", "", name))
