"""Write a detector's weights in the format of another implementation's loader."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from deformable_detr.conversion.class_rows import row_names
from deformable_detr.conversion.content import CONFIG_FILE, SAFETENSORS_FILE
from deformable_detr.conversion.options import official_options
from deformable_detr.conversion.preprocessing import PREPROCESSOR_FILE, preprocessor_config
from deformable_detr.conversion.recognition import layout_of
from deformable_detr.conversion.sources.transformers import file_name
from deformable_detr.conversion.stored import KEY, TENSORS_FILE, Stored
from deformable_detr.conversion.weights import export_weights
from deformable_detr.files import write_whole
from deformable_detr.finite import to_json
from deformable_detr.labels import LabelSpace
from deformable_detr.messages import shown
from deformable_detr.models.deformable_detr import DeformableDETR

# transformers' names of loss settings, and those of the official code. The weight of the class loss
# has none.
_INTEGER_OPTIONS = {
    "class_cost": "set_cost_class",
    "bbox_cost": "set_cost_bbox",
    "giou_cost": "set_cost_giou",
    "bbox_loss_coefficient": "bbox_loss_coef",
    "giou_loss_coefficient": "giou_loss_coef",
}
# For transformers; some models have no file of further tensors.
FOLDER_FILES = (SAFETENSORS_FILE, TENSORS_FILE, PREPROCESSOR_FILE, CONFIG_FILE)
_DILATED_STRIDE = 16  # of a dilated last stage


def write_weights(
    path: Path,
    model: DeformableDETR,
    *,
    to: str,
    label_space: LabelSpace,
    config: Mapping[str, Any],
) -> None:
    """Write a file (for transformers, a folder) atomically.

    Args:
        path: output path; must not exist.
        model: detector to write.
        to: one of `SOURCES` except "native".
        label_space: the model's classes, stored with the weights.
        config: settings of the run, plain JSON. Those that the format has a place for are
            written there; all of them are also stored as `Stored` describes.

    Raises:
        FileExistsError: `path` exists.
        WriteError: writing failed; no partial output is left.
        ValueError: the target has no equivalent of a part of the model.
    """
    if path.exists():
        raise FileExistsError(f"{shown(path)} must not exist yet; choose another name or remove it")
    state = export_weights(model, to, label_space=label_space)
    stored = Stored.of(model, label_space, config, layout_of(to).left_out)
    with write_whole(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        if to == "transformers":
            _write_folder(temporary, state, label_space, stored)
        else:
            with temporary.open("wb") as file:
                torch.save(_checkpoint(to, state, label_space, stored), file)


def _checkpoint(
    to: str, state: dict[str, Tensor], label_space: LabelSpace, stored: Stored
) -> dict[str, Any]:
    """Return the content of a `.pth` file: the loader's format, and what is stored beside it."""
    beside = {"args": official_options(stored.config), KEY: stored.to_plain()}
    if to in ("mmdet", "mmdet-dino"):
        meta = {"dataset_meta": {"classes": row_names(label_space)}, "epoch": 0, "iter": 0}
        return {"meta": meta, "state_dict": state, **beside}
    return {"model": state, **beside}


def _write_folder(
    folder: Path, state: dict[str, Tensor], label_space: LabelSpace, stored: Stored
) -> None:
    """Write the files that `from_pretrained` of transformers reads."""
    folder.mkdir(exist_ok=True)
    # safetensors does not allow names to share memory.
    tensors = {file_name(name): tensor.contiguous().clone() for name, tensor in state.items()}
    file = folder / SAFETENSORS_FILE
    save_file(tensors, file, metadata={"format": "pt", **stored.write_beside(file)})
    data, channels = stored.config["data"], stored.config["model"]["backbone"]["in_channels"]
    files = {
        CONFIG_FILE: _transformers_config(stored.config, label_space),
        PREPROCESSOR_FILE: preprocessor_config(
            data["eval_size"], data["eval_max_size"], channels=channels
        ),
    }
    for name, content in files.items():
        (folder / name).write_text(to_json(content, name, indent=2), encoding="utf-8")


def _transformers_config(config: Mapping[str, Any], label_space: LabelSpace) -> dict[str, Any]:
    settings, options = config["model"], official_options(config)
    two_stage = options["two_stage"]
    num_queries = options["num_queries"]
    names = dict(enumerate(row_names(label_space)))
    return {
        "model_type": "deformable_detr",
        "architectures": ["DeformableDetrForObjectDetection"],
        "backbone_config": _timm_config(settings["backbone"]),
        "d_model": options["hidden_dim"],
        "encoder_layers": options["enc_layers"],
        "encoder_attention_heads": options["nheads"],
        "encoder_ffn_dim": settings["encoder"]["ffn_dim"],
        "encoder_n_points": options["enc_n_points"],
        "decoder_layers": options["dec_layers"],
        "decoder_attention_heads": options["nheads"],
        "decoder_ffn_dim": options["dim_feedforward"],
        "decoder_n_points": options["dec_n_points"],
        "dropout": options["dropout"],
        "num_feature_levels": options["num_feature_levels"],
        "position_embedding_type": options["position_embedding"],
        "dilation": options["dilation"],
        "with_box_refine": options["with_box_refine"],
        "two_stage": two_stage,
        **{"two_stage_num_proposals" if two_stage else "num_queries": num_queries},
        # The defaults differ from the paper: no auxiliary losses, and another matching cost.
        "auxiliary_loss": options["aux_loss"],
        "focal_alpha": options["focal_alpha"],
        **{
            theirs: int(options[ours])
            for theirs, ours in _INTEGER_OPTIONS.items()
            if float(options[ours]).is_integer()  # transformers takes no others
        },
        "id2label": names,
        "label2id": {name: label for label, name in names.items()},
    }


def _timm_config(backbone: Mapping[str, Any]) -> dict[str, Any]:
    strides, dilation = list(backbone["out_strides"]), backbone.get("dilation", False)
    if dilation and strides[-1] == _DILATED_STRIDE:
        strides[-1] *= 2  # timm numbers maps by stage
    return {
        "model_type": "timm_backbone",
        "backbone": backbone["name"] if "name" in backbone else f"resnet{backbone['depth']}",
        "num_channels": backbone["in_channels"],
        "features_only": True,
        "use_pretrained_backbone": False,
        "out_indices": [stride.bit_length() - 2 for stride in strides],  # strides 2, 4, 8, ...
        **({"output_stride": 16} if dilation else {}),
    }
