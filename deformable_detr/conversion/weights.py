"""Bringing weights from elsewhere into a detector, and taking them out again."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from deformable_detr.conversion.class_rows import (
    ClassRows,
    class_rows,
    number_of_rows,
    official_rows,
    select_rows,
    spread_rows,
)
from deformable_detr.conversion.content import FileContent, content_of, read_content
from deformable_detr.conversion.detector_structure import structure_of_model
from deformable_detr.conversion.recognition import SOURCES, layout_of, recognize
from deformable_detr.conversion.translate import Translation, clean, to_ours, to_theirs
from deformable_detr.labels import LabelSpace
from deformable_detr.layers.reparam.base import ReparameterizedBlock
from deformable_detr.layers.reparam.official_layout import with_official_norms
from deformable_detr.models.deformable_detr import DeformableDETR

_COUNTER = "num_batches_tracked"
_MIMICKING = "mimicking."
_A_CLASS_HEAD = "decoder.class_heads.0.bias"


@dataclass(frozen=True)
class Weights:
    """A detector's weights, wherever they are from.

    Attributes:
        state_dict: tensors by our names. NameRow k of a class head stands for label k of the label
            space; but row 0 of the head of the proposals, `queries.class_head`, means "an object
            of any class", and its other rows nothing.
        label_space: the classes, or None where neither the file nor its format says.
        source: "native", "official", "transformers", "detrex" or "mmdet".
        config: settings of a run as plain JSON: all of them for a native checkpoint, else those
            of the model that follow from the file.
        assumed: which of these settings the file does not tell, one phrase each.
        num_rows: how many rows the class heads of the file have.
        ignored: names of what carries no weights.
    """

    state_dict: dict[str, Tensor]
    label_space: LabelSpace | None
    source: str
    config: dict[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    num_rows: int | None = None
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class ImportReport:
    """What `import_weights` did.

    Attributes:
        source: where the weights are from.
        num_loaded: how many tensors of the source were used.
        ignored: names in the source that carry no weights, such as counters.
        class_rows: what became of the rows of the class heads, in words.
    """

    source: str
    num_loaded: int
    ignored: tuple[str, ...]
    class_rows: str


def import_weights(
    model: DeformableDETR, weights: Mapping[str, Any] | str | Path, source: str = "auto"
) -> ImportReport:
    """Load weights from elsewhere into a detector of the same structure.

    Rows of the class heads are kept as they are where the model has as many, and else are mapped
    onto the contiguous labels of the categories that they stand for.

    Args:
        model: gets the weights.
        weights: a state_dict, a checkpoint that holds one, or the path of a file or folder.
        source: "native", "official", "transformers", "detrex", "mmdet", or "auto", which goes by
            the names.

    Raises:
        FileNotFoundError: the path leads nowhere.
        ValueError: tensors are missing, too many, or of another shape; the model is unchanged.
    """
    what = f"checkpoint {weights}" if isinstance(weights, str | Path) else "weights"
    content = (
        read_content(Path(weights))
        if isinstance(weights, str | Path)
        else content_of(weights, what)
    )
    state, ignored = clean(content.state_dict)
    source = choose_source(source, state, what)
    translation = _translate(model, state, source)
    ours, rows_text = translation.state_dict, ""
    own = _weights_of(model, of_training=source == "native")
    if not translation.problems and _A_CLASS_HEAD in ours:
        ours, rows_text = _fit_rows(ours, number_of_rows(own), source, content)
    _require_fit(own, ours, translation, what)
    model.load_state_dict(ours, strict=False)  # all but counters, which are the model's own
    return ImportReport(source, len(state), ignored, rows_text)


def _weights_of(model: DeformableDETR, *, of_training: bool = True) -> dict[str, Tensor]:
    """The model's state_dict without counters of batch norm, and without what only trains it."""
    state = {name: t for name, t in model.state_dict().items() if not name.endswith(_COUNTER)}
    if of_training:
        return state
    return {name: tensor for name, tensor in state.items() if not name.startswith(_MIMICKING)}


def _translate(model: DeformableDETR, state: dict[str, Tensor], source: str) -> Translation:
    """A state_dict by our names, for a model whose structure decides which there must be."""
    if source == "native":
        return Translation(state, {name: name for name in state}, ())
    layout = layout_of(source)
    return to_ours(layout, structure_of_model(model), layout.normalize(state))


def choose_source(source: str, keys: Mapping[str, Tensor], what: str) -> str:
    """The given source, or the one that the keys tell.

    Raises:
        ValueError: there is no such source.
    """
    if source == "auto":
        return recognize(keys, what)
    if source not in SOURCES:
        raise ValueError(f"source must be auto or one of {', '.join(SOURCES)}, got {source!r}")
    return source


def _fit_rows(
    state: dict[str, Tensor], wanted: int, source: str, content: FileContent
) -> tuple[dict[str, Tensor], str]:
    """The class heads with as many rows as the model has, and what was done, in words."""
    count = number_of_rows(state)
    if count == wanted:
        return state, f"{count} rows kept"
    rows: ClassRows = class_rows(source, count, content.about)
    if len(rows.used) == wanted:
        return select_rows(state, rows.used), f"{wanted} of {count} rows, those of a category"
    raw, raw_count = official_rows(count, rows.label_space)
    if raw_count == wanted:
        return spread_rows(state, raw, raw_count), f"{count} rows among {wanted}, by category id"
    return state, ""  # of another shape, which is said of every tensor


def _require_fit(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], translation: Translation, what: str
) -> None:
    """Refuse weights that are not the model's in every name and shape, in one error."""
    their_names, problems = translation.their_names, list(translation.problems)
    absent = [name for name in own if name not in state and name not in their_names]
    extra = [name for name in state if name not in own]
    reshaped = [
        f"{their_names[name]} is {tuple(state[name].shape)} and must be {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if absent:
        problems.append(f"lacks {len(absent)} parameters of the model, first: {absent[0]}")
    if extra:
        problems.append(f"has {len(extra)} parameters that the model has not, first: {extra[0]}")
    if reshaped:
        problems.append(f"has {len(reshaped)} tensors of another shape, first: {reshaped[0]}")
    if problems:
        raise ValueError(f"{what} {', '.join(problems)}; build the model that it was trained as")


def export_weights(
    model: DeformableDETR, to: str, *, label_space: LabelSpace | None = None
) -> dict[str, Tensor]:
    """The detector's weights under another implementation's names, in its order.

    Args:
        model: where they are from; the tensors share its memory as those of `state_dict` do. One
            with re-parameterized blocks must have gone through `fuse_model`, whose convolutions
            get frozen norms that add their biases.
        to: "native", "official", "transformers", "detrex" or "mmdet".
        label_space: what the model's classes are. The official layout counts rows by category
            id; without a label space, 80 classes are taken for COCO's and get its 91 rows.

    Raises:
        ValueError: an unknown target, or a model that cannot be expressed there.
    """
    if to == "native":
        return _weights_of(model)
    blocks = sum(isinstance(module, ReparameterizedBlock) for module in model.modules())
    if blocks:
        raise ValueError(
            f"model must be fused for the layout of {to}, got {blocks} re-parameterized blocks; "
            "give fuse_model(model)"
        )
    layout, structure = layout_of(to), structure_of_model(model)
    state = _weights_of(with_official_norms(model), of_training=False)
    if to == "official":
        rows, count = official_rows(number_of_rows(state), label_space)
        if count != len(rows):
            state = spread_rows(state, rows, count)
    return to_theirs(layout, structure, state)
