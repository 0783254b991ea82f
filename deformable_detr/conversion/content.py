"""Content of a weights file: tensors and metadata."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from deformable_detr.arguments import MOST_ENTRIES, require_bounded
from deformable_detr.conversion.pickles import Options, read_pickle
from deformable_detr.conversion.preprocessing import (
    Preprocessing,
    read_json_object,
    read_preprocessing,
)
from deformable_detr.conversion.stored import KEY, Stored, read_stored
from deformable_detr.engine.checkpoints.checkpoint import (
    FORMAT,
    Checkpoint,
    checkpoint_of,
    weights_for_inference,
)
from deformable_detr.engine.checkpoints.sealed_file import outline, require_unaltered
from deformable_detr.files import require_regular_file
from deformable_detr.files.torch_files import SAFETENSORS, load_safetensors
from deformable_detr.messages import in_brief, shown

logger = logging.getLogger(__name__)
CONFIG_FILE = "config.json"
SAFETENSORS_FILE = "model.safetensors"
_FOLDER_FILES = (SAFETENSORS_FILE, "pytorch_model.bin")
_STATE_KEYS = ("model", "state_dict")  # the official code and detrex; mmdetection
_EMA_KEY = "ema_model"  # the official DINO, if its moving average is switched on
# transformers' option names, and those of the official code
_OPTIONS_BY_TRANSFORMERS = {
    "encoder_attention_heads": "nheads",
    "encoder_n_points": "enc_n_points",
    "decoder_n_points": "dec_n_points",
    "dilation": "dilation",
    "num_queries": "num_queries",
    "dropout": "dropout",
}
# transformers' values of options that its config.json leaves out.
_DEFAULTS = {
    "encoder_attention_heads": 8,
    "decoder_attention_heads": 8,
    "encoder_n_points": 4,
    "decoder_n_points": 4,
    "activation_function": "relu",
    "dilation": False,
    "num_queries": 300,
    "two_stage_num_proposals": 300,
    "dropout": 0.1,
}
_DILATED_STRIDE = 16  # of the last stage of a ResNet


@dataclass(frozen=True)
class FileContent:
    """Content of a weights file.

    Attributes:
        state_dict: tensors by their names in the file.
        about: metadata, if present: "args" (options by the names of the official code),
            "id2label" and "classes" (names of the class-head rows), "categories" (label space
            in COCO's form), "config" (of a native checkpoint, or stored by `convert`).
        extra: tensors by our names that the file's format has no place for.
        preprocessing: of a file of transformers that describes it.
    """

    state_dict: dict[str, Tensor]
    about: dict[str, Any] = field(default_factory=dict)
    extra: dict[str, Tensor] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None

    def with_stored(self, stored: Stored) -> "FileContent":
        """Return this content with what `convert` has stored beside the weights."""
        about = {**self.about, "config": stored.config, "categories": stored.categories}
        return replace(self, about=about, extra=stored.tensors)


def read_content(path: Path) -> FileContent:
    """Read a file of any supported kind, or a folder written by transformers.

    Raises:
        FileNotFoundError: `path` does not exist.
        ValueError: the file holds no weights, is damaged, or holds code.
    """
    what = f"checkpoint {shown(path)}"
    file = _file_in(path) if path.is_dir() else path
    try:
        require_regular_file(file, "checkpoint")
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{what} does not exist; check the path") from error
    if file.suffix == SAFETENSORS:
        content = _safetensors(file, what)
    else:
        loaded = read_pickle(file)
        if isinstance(loaded, Mapping) and loaded.get("format") == FORMAT:
            require_unaltered(file)
            return _native(checkpoint_of(loaded, file))
        content = content_of(loaded, what)
    if file.suffix != SAFETENSORS and file.name not in _FOLDER_FILES:
        return content  # a file of another format, which other files beside it do not describe
    config = file.parent / CONFIG_FILE
    if config.is_file():
        content.about.update(_about_from_config(config))
    return replace(content, preprocessing=read_preprocessing(file.parent))


def _safetensors(file: Path, what: str) -> FileContent:
    content = FileContent(load_safetensors(file, what))
    stored = read_stored(file, what)
    return content if stored is None else content.with_stored(stored)


def content_of(loaded: Any, what: str) -> FileContent:
    """Return the content of a loaded checkpoint: a state_dict, or a mapping that holds one.

    Raises:
        ValueError: the checkpoint holds no tensors by name.
    """
    state = loaded
    if isinstance(loaded, Mapping):
        if loaded.get("format") == FORMAT and loaded.get("ema") is not None:
            loaded = {**loaded, "model": loaded["ema"]}  # as in `weights_for_inference`
        nested = [loaded[key] for key in _STATE_KEYS if isinstance(loaded.get(key), Mapping)]
        state = nested[0] if nested else loaded
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(
            isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
        )
    ):
        raise ValueError(f"{what} must hold a detector's weights by name, got {outline(loaded)}")
    if state is loaded:
        return FileContent(dict(state))
    if isinstance(loaded.get(_EMA_KEY), Mapping):
        logger.warning("%s also holds averaged weights, %r, which are not read", what, _EMA_KEY)
    content = FileContent(dict(state), _about(loaded, what))
    return content.with_stored(Stored.from_plain(loaded[KEY], what)) if KEY in loaded else content


def _file_in(folder: Path) -> Path:
    for name in _FOLDER_FILES:
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"folder {folder} must hold {' or '.join(_FOLDER_FILES)}, as transformers writes them; "
        "of a run's folder, give the file last.pth or best.pth"
    )


def _native(checkpoint: Checkpoint) -> FileContent:
    about = {"categories": checkpoint.label_space.to_json(), "config": checkpoint.config}
    return FileContent(weights_for_inference(checkpoint), about)


def _about(checkpoint: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Return the metadata that the official code, mmdetection and this package store.

    Raises:
        ValueError: it is larger than that of any detector.
    """
    about: dict[str, Any] = {}
    options = checkpoint.get("args")
    if isinstance(options, Options):
        options = options.values
    if isinstance(options, Mapping):
        require_bounded(options, f"options of {what}")
        about["args"] = dict(options)
    categories = checkpoint.get("categories")
    if isinstance(categories, list) and all(isinstance(one, Mapping) for one in categories):
        require_bounded(categories, f"categories of {what}", most=MOST_ENTRIES)
        about["categories"] = categories
    meta = checkpoint.get("meta")
    if isinstance(meta, Mapping):
        dataset = meta.get("dataset_meta")
        places = (dataset if isinstance(dataset, Mapping) else {}, meta)
        for place in places:
            for key in ("classes", "CLASSES"):
                if isinstance(place.get(key), list | tuple):
                    require_bounded(place[key], f"classes of {what}", most=MOST_ENTRIES)
                    about.setdefault("classes", [str(name) for name in place[key]])
    return about


def _about_from_config(path: Path) -> dict[str, Any]:
    """Return the metadata of transformers' config.json.

    Raises:
        ValueError: the model computes something else than the detector here.
    """
    content = read_json_object(path)
    if content.get("model_type") != "deformable_detr":
        return {}
    given = {name: value for name, value in content.items() if value is not None}
    config = {**_DEFAULTS, **given}
    heads = config["encoder_attention_heads"]
    for name, wanted in (("activation_function", "relu"), ("decoder_attention_heads", heads)):
        if config[name] != wanted:
            raise ValueError(
                f"{name} of {path} must be {wanted}, got {in_brief(config[name])}; this package "
                "has no detector that computes the same"
            )
    args = {ours: config[theirs] for theirs, ours in _OPTIONS_BY_TRANSFORMERS.items()}
    if config.get("two_stage"):
        args["num_queries"] = config["two_stage_num_proposals"]
    backbone = config.get("backbone_config")
    if isinstance(backbone, dict) and backbone.get("output_stride") == _DILATED_STRIDE:
        args["dilation"] = True
    about: dict[str, Any] = {"args": args}
    labels = config.get("id2label")
    if isinstance(labels, dict):
        about["id2label"] = _names_of_rows(labels, path)
    return about


def _names_of_rows(labels: Mapping[str, Any], path: Path) -> list[str]:
    rows = [str(row) for row in range(len(labels))]
    if sorted(labels) != sorted(rows):
        raise ValueError(
            f"id2label of {path} must name rows 0 to {len(labels) - 1}, got {', '.join(labels)}"
        )
    return [str(labels[row]) for row in rows]
