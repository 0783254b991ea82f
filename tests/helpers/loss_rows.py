"""Rows of the settings of the losses, for `test_config_to_objects`."""

from functools import cache

from helpers.built import same
from helpers.setting_rows import Row

from deformable_detr.builders import build_criterion


def loss_rows() -> dict[str, Row]:
    costs = ("class_cost", "l1_cost", "giou_cost")
    criterion = cache(build_criterion)
    weights = {"class_weight": "class_", "l1_weight": "l1", "giou_weight": "giou"}
    rows = {
        f"loss.{name}": Row(0.7, lambda c, name=name: getattr(criterion(c).matcher, name))
        for name in costs
    }
    for name, attribute in weights.items():
        rows[f"loss.{name}"] = Row(
            0.7, lambda c, attribute=attribute: getattr(criterion(c).weights, attribute)
        )
    for name in ("focal_alpha", "focal_gamma"):
        rows[f"loss.{name}"] = Row(
            0.7,
            lambda c, name=name: same(
                getattr(criterion(c).class_loss, name.removeprefix("focal_")),
                getattr(criterion(c).matcher, name),
            ),
        )
    quality = "loss.class_loss[quality]"
    for name in ("score_power", "iou_power", "gamma", "floor"):
        rows[f"{quality}.{name}"] = Row(
            0.7, lambda c, name=name: getattr(criterion(c).class_loss, name)
        )
    for kind, other in (("focal", "quality"), ("quality", "focal")):
        rows[f"loss.class_loss[{kind}].kind"] = Row(
            kind,
            lambda c: type(criterion(c).class_loss).__name__,
            f"{kind.capitalize()}Loss",
            (f"loss.class_loss.kind={other}",),
        )
    return {
        **rows,
        "loss.class_weights": Row((0.5, 2.0), lambda c: criterion(c).class_weights),
        "loss.auxiliary": Row(False, lambda c: criterion(c).auxiliary),
        "match_official": Row(
            True, lambda c: criterion(c).matcher.focal_alpha, 0.25, ("loss.focal_alpha=0.7",)
        ),
    }
