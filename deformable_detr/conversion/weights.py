"""Import weights from other implementations into a detector, and export them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from deformable_detr.arguments import checked
from deformable_detr.conversion.class_rows import (
    LABEL_EMBED,
    ClassRows,
    class_rows,
    has_rows_by_id,
    number_of_rows,
    official_rows,
    select_rows,
    spread_rows,
)
from deformable_detr.conversion.content import FileContent, content_of, read_content
from deformable_detr.conversion.detector_structure import (
    has_denoising,
    ranks_by_class,
    require_layout,
    structure_of_model,
)
from deformable_detr.conversion.recognition import SOURCES, layout_of, recognize
from deformable_detr.conversion.stored import COUNTER
from deformable_detr.conversion.translate import Translation, clean, to_ours, to_theirs
from deformable_detr.files import as_path
from deformable_detr.labels import LabelSpace
from deformable_detr.layers.reparam.base import ReparameterizedBlock
from deformable_detr.layers.reparam.official_layout import with_official_norms
from deformable_detr.messages import in_brief, shown
from deformable_detr.models.deformable_detr import DeformableDETR

_A_CLASS_HEAD = "decoder.class_heads.0.bias"


@dataclass(frozen=True)
class Weights:
    """Weights of a detector from any source.

    Attributes:
        state_dict: tensors by our names. Row k of a class head belongs to label k of the label
            space, except in the proposals' head, `queries.class_head`, unless `ranked_by_class`:
            its row 0 means "an object of any class", and its other rows are unused.
        label_space: classes, or None if neither the file nor its format defines them.
        source: one of `SOURCES`.
        config: settings of a run as plain JSON: all of them if `has_all_settings`, else those of
            the model and of preprocessing that the file determines.
        assumed: settings that the file does not define, one phrase each.
        num_rows: number of class-head rows in the file.
        ignored: names of tensors that are not weights.
        has_all_settings: whether this package has written the file, with all settings of the run.
        ranked_by_class: whether proposals are ranked by the logits of the classes.
    """

    state_dict: dict[str, Tensor]
    label_space: LabelSpace | None
    source: str
    config: dict[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    num_rows: int | None = None
    ignored: tuple[str, ...] = ()
    has_all_settings: bool = False
    ranked_by_class: bool = False


@dataclass(frozen=True)
class ImportReport:
    """Result of `import_weights`.

    Attributes:
        source: source of the weights.
        num_loaded: number of tensors of the source that were used.
        ignored: names of tensors that are not weights, such as counters.
        class_rows: description of the mapping of class-head rows.
    """

    source: str
    num_loaded: int
    ignored: tuple[str, ...]
    class_rows: str


@checked
def import_weights(
    model: DeformableDETR, weights: Mapping[str, Any] | str | Path, source: str = "auto"
) -> ImportReport:
    """Load weights of any source into a detector of the same structure.

    Class-head rows are unchanged if the model has the same number of rows; otherwise they are
    mapped to the contiguous labels of their categories.

    Args:
        model: detector that receives the weights.
        weights: a state_dict, a checkpoint that holds one, or the path of a file or folder.
        source: "native", "official", "transformers", "detrex", "mmdet", "dino", "detrex-dino",
            "mmdet-dino", or "auto" to detect it by the names.

    Raises:
        FileNotFoundError: the path does not exist.
        ValueError: tensors are missing, unexpected or of another shape; the model is unchanged.
    """
    what = f"checkpoint {weights}" if isinstance(weights, str | Path) else "weights"
    content = (
        read_content(as_path("weights", weights))
        if isinstance(weights, str | Path)
        else content_of(weights, what)
    )
    state, ignored = clean(content.state_dict)
    source = choose_source(source, state, what)
    translation = _translate(model, state, source)
    ours, rows_text = translation.state_dict, ""
    left_out = () if source == "native" else layout_of(source).left_out
    own = _weights_of(model, left_out)
    if source != "native" and LABEL_EMBED in own.keys() ^ ours.keys():
        # Only training uses it: the model keeps its own, or needs none.
        own, ours = ({n: t for n, t in s.items() if n != LABEL_EMBED} for s in (own, ours))
    if not translation.problems and _A_CLASS_HEAD in ours:
        ranked = ranks_by_class(model)
        ours, rows_text = _fit_rows(
            ours, number_of_rows(own), source, content, ranked_by_class=ranked
        )
    _require_fit(own, ours, translation, what)
    model.load_state_dict(ours, strict=False)  # all except counters, which stay
    return ImportReport(source, len(state), ignored, rows_text)


def _weights_of(model: DeformableDETR, left_out: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Return the model's state_dict without batch-norm counters and names that begin so."""
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.endswith(COUNTER) and not name.startswith(left_out)
    }


def _translate(model: DeformableDETR, state: dict[str, Tensor], source: str) -> Translation:
    """Translate a state_dict to our names, given the model's structure."""
    if source == "native":
        return Translation(state, {name: name for name in state}, ())
    layout, structure = layout_of(source), structure_of_model(model)
    require_layout(model, structure, layout)
    state = layout.normalize(state)
    structure = replace(structure, denoising=has_denoising(layout, state))
    return to_ours(layout, structure, state)


def choose_source(source: str, keys: Mapping[str, Tensor], what: str) -> str:
    """Return the given source, or detect it from the keys.

    Raises:
        ValueError: the source is unknown.
    """
    if source == "auto":
        return recognize(keys, what)
    if source not in SOURCES:
        raise ValueError(
            f"source must be auto or one of {', '.join(SOURCES)}, got {in_brief(source)}"
        )
    return source


def _fit_rows(
    state: dict[str, Tensor],
    wanted: int,
    source: str,
    content: FileContent,
    *,
    ranked_by_class: bool,
) -> tuple[dict[str, Tensor], str]:
    """Fit the class heads to the model's number of rows; return them and a description."""
    count = number_of_rows(state)
    if count == wanted:
        return state, f"{count} rows kept"
    rows: ClassRows = class_rows(source, count, content.about)
    if len(rows.used) == wanted:
        selected = select_rows(state, rows.used, ranked_by_class=ranked_by_class)
        return selected, f"{wanted} of {count} rows, those with a category"
    raw, raw_count = official_rows(count, rows.label_space)
    if raw_count == wanted:
        spread = spread_rows(state, raw, raw_count, ranked_by_class=ranked_by_class)
        return spread, f"{count} rows into {wanted}, by category id"
    return state, ""  # `_require_fit` reports the other shape


def _require_fit(
    own: Mapping[str, Tensor], state: Mapping[str, Tensor], translation: Translation, what: str
) -> None:
    """Raise one error that lists all differences in names and shapes."""
    their_names, problems = translation.their_names, list(translation.problems)
    absent = [name for name in own if name not in state and name not in their_names]
    extra = [name for name in state if name not in own]
    reshaped = [
        f"{shown(their_names[name])} is {tuple(state[name].shape)} and must be "
        f"{tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    if absent:
        problems.append(f"is missing {len(absent)} parameters, first: {absent[0]}")
    if extra:
        problems.append(f"has {len(extra)} unexpected parameters, first: {extra[0]}")
    if reshaped:
        problems.append(f"has {len(reshaped)} tensors of another shape, first: {reshaped[0]}")
    if problems:
        raise ValueError(f"{what} {', '.join(problems)}; build the model that it was trained as")


@checked
def export_weights(
    model: DeformableDETR, to: str, *, label_space: LabelSpace | None = None
) -> dict[str, Tensor]:
    """Return the detector's weights under another implementation's names, in its order.

    Args:
        model: detector; the tensors share its memory, as in `state_dict`. Re-parameterized blocks
            must be fused by `fuse_model`; their convolutions get frozen norms that add the
            biases.
        to: "native", "official", "transformers", "detrex" or "mmdet"; for DINO, "dino",
            "detrex-dino" or "mmdet-dino".
        label_space: the model's classes. The official layouts index rows by category id; without
            a label space, 80 classes are assumed to be COCO's and get its 91 rows.

    Raises:
        ValueError: the target is unknown, or has no equivalent of a part of the model.
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
    require_layout(model, structure, layout)
    state = _weights_of(with_official_norms(model), layout.left_out)
    if has_rows_by_id(to):
        rows, count = official_rows(number_of_rows(state), label_space)
        if count != len(rows):
            state = spread_rows(state, rows, count, ranked_by_class=ranks_by_class(model))
    return to_theirs(layout, structure, state)
