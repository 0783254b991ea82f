"""Settings as options of the official code, by the names of its command line."""

from collections.abc import Mapping
from typing import Any

from deformable_detr.layers.position import TEMPERATURE

# Options that tensors do not determine, and the settings of a model that they are.
_PLACES: dict[str, tuple[tuple[str, str], ...]] = {
    "nheads": (("attention", "num_heads"),),
    "enc_n_points": (("encoder", "num_points"),),
    "dec_n_points": (("decoder", "num_points"),),
    "num_queries": (("queries", "num_queries"),),
    "dropout": (("encoder", "dropout"), ("decoder", "dropout")),
    "pe_temperatureH": (("position", "temperature"),),
}


def official_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of model and losses as options of the official code and of its DINO.

    Args:
        config: the whole config, plain JSON.
    """
    settings, loss = config["model"], config["loss"]
    return {
        "nheads": settings["attention"]["num_heads"],
        "enc_n_points": settings["encoder"]["num_points"],
        "dec_n_points": settings["decoder"]["num_points"],
        "enc_layers": settings["encoder"]["num_layers"],
        "dec_layers": settings["decoder"]["num_layers"],
        "dim_feedforward": settings["decoder"]["ffn_dim"],
        "hidden_dim": settings["embed_dim"],
        "dropout": settings["decoder"]["dropout"],
        "num_queries": settings["queries"]["num_queries"],
        "num_feature_levels": settings["neck"]["num_levels"],
        "position_embedding": settings["position"]["kind"],
        **_temperatures(settings["position"]),
        "dilation": settings["backbone"].get("dilation", False),
        "with_box_refine": settings["decoder"]["box_refinement"],
        "two_stage": settings["queries"]["kind"] == "two_stage",
        "aux_loss": loss["auxiliary"],
        "set_cost_class": loss["class_cost"],
        "set_cost_bbox": loss["l1_cost"],
        "set_cost_giou": loss["giou_cost"],
        "cls_loss_coef": loss["class_weight"],
        "bbox_loss_coef": loss["l1_weight"],
        "giou_loss_coef": loss["giou_weight"],
        "focal_alpha": loss["focal_alpha"],
    }


def _temperatures(position: Mapping[str, Any]) -> dict[str, float]:
    if position["kind"] != "sine":
        return {}
    temperature = position.get("temperature", TEMPERATURE)  # older files do not say it
    return {"pe_temperatureH": temperature, "pe_temperatureW": temperature}


def with_options(config: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored config with the options that its file gives, where they differ.

    They are what other programs go by, and may have been edited since the config was stored.
    """
    model = dict(config["model"])
    written = official_options(config)
    for option, places in _PLACES.items():
        if option in options and option in written and options[option] != written[option]:
            for section, key in places:
                model[section] = {**model[section], key: options[option]}
    return {**config, "model": model}
