"""Read weights files of any supported source."""

from pathlib import Path
from typing import Any

from deformable_detr.conversion.class_rows import class_rows, number_of_rows, select_rows
from deformable_detr.conversion.content import read_content
from deformable_detr.conversion.detector_structure import structure_of_names
from deformable_detr.conversion.recognition import layout_of
from deformable_detr.conversion.settings import model_settings
from deformable_detr.conversion.translate import clean, to_ours
from deformable_detr.conversion.weights import Weights, choose_source
from deformable_detr.labels import LabelSpace


def read_weights(path: Path, source: str = "auto", *, with_settings: bool = True) -> Weights:
    """Read a detector's weights from a file of any supported kind; code in it never runs.

    Args:
        path: a checkpoint of this package, a `.pth` file of the official code, detrex or
            mmdetection 3.x, a `.safetensors` file, or a folder written by transformers.
        source: as in `import_weights`.
        with_settings: whether to derive the model's settings; not every file determines them.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the file is damaged, of an unknown kind, or not a complete detector.
    """
    what = f"checkpoint {path}"
    content = read_content(path)
    state, ignored = clean(content.state_dict)
    source = choose_source(source, state, what)
    if source == "native":
        categories = content.about.get("categories")
        space = LabelSpace.from_categories(categories) if categories else None
        settings = content.about.get("config", {})
        return Weights(content.state_dict, space, source, settings, ignored=ignored)
    layout = layout_of(source)
    state = layout.normalize(state)
    structure = structure_of_names(layout, state)
    translation = to_ours(layout, structure, state)
    if translation.problems:
        raise ValueError(f"{what} {', '.join(translation.problems)}")
    ours = translation.state_dict
    options = content.about.get("args", {})
    config: dict[str, Any] = {}
    assumed: tuple[str, ...] = ()
    if with_settings:
        config["model"], assumed = model_settings(structure, ours, options, what)
    rows = class_rows(source, number_of_rows(ours), content.about)
    if len(rows.used) < rows.count:
        ours = select_rows(ours, rows.used)
    return Weights(
        ours,
        rows.label_space,
        source,
        config,
        assumed=assumed,
        num_rows=rows.count,
        ignored=ignored,
    )
