"""Descriptions of all settings, and the page of settings generated from them."""

from pathlib import Path

from deformable_detr.config import RunConfig
from deformable_detr.config.reference import settings_page

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_every_setting_has_a_description_of_its_own() -> None:
    schema = RunConfig.model_json_schema()
    missing = [
        f"{model['title']}.{name}"
        for model in (schema, *schema["$defs"].values())
        for name, field in model["properties"].items()
        if name != "kind" and "description" not in field
    ]
    assert missing == [], "add a docstring below the field, in other words than that of its class"


def test_the_page_is_up_to_date() -> None:
    is_same = PAGE.read_text(encoding="utf-8") == settings_page()
    assert is_same, "run: python -m deformable_detr.config.reference > docs/settings.md"


def test_the_page_has_type_default_meaning_and_kinds() -> None:
    lines = settings_page().splitlines()
    momentum = "| number >= 0, < 1 | `0.9` | Momentum factor. | `sgd` |"
    assert f"| `train.optimizer.momentum` {momentum}" in lines
    assert "* `adamw` (default): AdamW, with PyTorch's betas." in lines
    assert any(
        line.startswith("| `data.max_padded_pixels` | integer > 0 or `null` | `null` |")
        for line in lines
    )
