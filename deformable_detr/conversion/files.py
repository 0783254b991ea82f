"""Read weights files of any supported source."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from deformable_detr.conversion.class_rows import class_rows, number_of_rows, select_rows
from deformable_detr.conversion.content import FileContent, read_content
from deformable_detr.conversion.detector_structure import structure_of_names
from deformable_detr.conversion.layout import DetectorStructure, Layout
from deformable_detr.conversion.options import with_options
from deformable_detr.conversion.preprocessing import Preprocessing
from deformable_detr.conversion.recognition import layout_of
from deformable_detr.conversion.settings import model_settings
from deformable_detr.conversion.translate import clean, to_ours
from deformable_detr.conversion.weights import Weights, choose_source
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import shown

logger = logging.getLogger(__name__)


def read_weights(
    path: Path, source: str = "auto", *, with_settings: bool = True, raw_labels: bool = False
) -> Weights:
    """Read a detector's weights from a file of any supported kind; code in it never runs.

    Args:
        path: a checkpoint of this package, a `.pth` file of the official code, detrex or
            mmdetection 3.x, of Deformable DETR or DINO, a `.safetensors` file, or a folder written
            by transformers.
        source: as in `import_weights`.
        with_settings: whether to derive the settings; not every file determines them. Without,
            preprocessing that cannot be reproduced is a warning, not an error.
        raw_labels: keep class rows without a category where rows are category ids, as the official
            code labels them.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the file is damaged, of an unknown kind, or not a complete detector, or its
            preprocessing cannot be reproduced.
    """
    what = f"checkpoint {shown(path)}"
    content = read_content(path)
    state, ignored = clean(content.state_dict)
    source = choose_source(source, state, what)
    _check_preprocessing(content.preprocessing, what, raises=with_settings)
    if source == "native":
        return _native(content, ignored)
    layout = layout_of(source)
    state = layout.normalize(state)
    structure = _with_stored_heads(structure_of_names(layout, state), content)
    translation = to_ours(layout, structure, state)
    if translation.problems:
        raise ValueError(f"{what} {', '.join(translation.problems)}")
    ours = translation.state_dict
    config: dict[str, Any] = {}
    assumed: tuple[str, ...] = ()
    if with_settings:
        config, assumed = _settings(content, layout, structure, ours, what)
    rows = class_rows(source, number_of_rows(ours), content.about)
    space = rows.label_space
    if space is not None and raw_labels and space.with_raw_labels().num_classes == rows.count:
        space = space.with_raw_labels()
    elif len(rows.used) < rows.count:
        ours = select_rows(ours, rows.used, ranked_by_class=layout.is_dino)
    return Weights(
        {**ours, **content.extra},
        space,
        source,
        config,
        assumed=assumed,
        num_rows=rows.count,
        ignored=ignored,
        has_all_settings="config" in content.about,
        ranked_by_class=layout.is_dino,
    )


def _with_stored_heads(structure: DetectorStructure, content: FileContent) -> DetectorStructure:
    """Return the structure with heads as stored beside it, if it is that of DINO.

    Its names do not tell separate heads from one pair of all layers, and untrained ones are equal.
    """
    if not structure.dino:
        return structure
    stored = _setting(content, "decoder", "share_heads")
    return replace(structure, share_heads=stored) if isinstance(stored, bool) else structure


def _setting(content: FileContent, section: str, key: str) -> object:
    """Return a stored setting of the model; None if it is not stored."""
    value: object = content.about.get("config")
    for name in ("model", section, key):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _native(content: FileContent, ignored: tuple[str, ...]) -> Weights:
    about = content.about
    categories = about.get("categories")
    return Weights(
        content.state_dict,
        LabelSpace.from_categories(categories) if categories else None,
        "native",
        about.get("config", {}),
        ignored=ignored,
        has_all_settings="config" in about,
        ranked_by_class=_setting(content, "queries", "ranking") == "class",
    )


def _settings(
    content: FileContent,
    layout: Layout,
    structure: DetectorStructure,
    state: Mapping[str, Tensor],
    what: str,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the config, and the assumptions made: stored by `convert`, else what is known.

    Image sizes and options of the file's own format come first: other programs go by them, and they
    may have been edited.
    """
    options = content.about.get("args", {})
    config = content.about.get("config")
    assumed: tuple[str, ...] = ()
    if config is None:
        model, assumed = model_settings(layout, structure, state, options, what)
        config = {"model": model}
    else:
        try:
            config = with_options(config, options)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(
                f"{what} holds an incomplete config ({error}); convert the original again"
            ) from error
    if content.preprocessing is not None:
        config = {**config, "data": {**config.get("data", {}), **content.preprocessing.sizes}}
    return config, assumed


def _check_preprocessing(given: Preprocessing | None, what: str, *, raises: bool) -> None:
    """Raise or warn if images were prepared in a way that this package does not have."""
    if given is None or not given.differences:
        return
    problem = (
        f"preprocessing of {what} must be a resize of the shorter side, bilinear, with a limit for "
        "the longer one, and ImageNet's mean and standard deviation; "
        f"{given.path.name} has {', '.join(given.differences)}"
    )
    if raises:
        raise ValueError(
            f"{problem}: detections would differ from transformers'; fine-tune it with "
            f"train --finetune-from, or remove {shown(given.path)} to ignore the difference"
        )
    logger.warning("%s; images are prepared as the config says", problem)
