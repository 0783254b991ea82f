"""All settings, found in the config models, so that a test cannot miss a new one."""

import re
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from deformable_detr.config import RunConfig


def config_fields() -> dict[str, Any]:
    """Return the type of each setting by its key, such as `train.optimizer[sgd].momentum`.

    The kind in brackets is that of the section of the setting itself; those further above are left
    out, as the settings below do not depend on them.
    """
    return dict(_fields(RunConfig, "", ""))


def dotted(key: str) -> str:
    """Return the key without kinds, as in an override."""
    return re.sub(r"\[\w+\]", "", key)


def choose_kinds(key: str) -> tuple[str, ...]:
    """Return the overrides that make the setting of a key exist."""
    found = re.search(r"(.*)\[(\w+)\]", key)
    if found is None:
        return ("model.mimicking={}",) if key.startswith("model.mimicking.") else ()
    section, kind = found.groups()
    required = {"timm": "name: resnet10t", "zoom_crop": "size: 64"}
    given = f"{{kind: {kind}, {required[kind]}}}" if kind in required else f"{{kind: {kind}}}"
    refinement = ("model.decoder.box_refinement=true",) if kind == "two_stage" else ()
    return (*refinement, f"{section}={given}")


def _fields(model: type[BaseModel], section: str, kind: str) -> Iterator[tuple[str, Any]]:
    for name, field in model.model_fields.items():
        sections = list(_models(field.annotation))
        if not sections:
            yield f"{section}{kind}.{name}".removeprefix("."), field.annotation
        for below in sections:
            kind_field = below.model_fields.get("kind")
            own = "" if kind_field is None else f"[{kind_field.default}]"
            yield from _fields(below, f"{section}.{name}".removeprefix("."), own)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the config models in an annotation: one, those of a union, or none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)
