"""Configs in which settings differ from their defaults, made from the fields of the config."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

from deformable_detr.config import RunConfig

Schema = Mapping[str, Any]
TEXT = "no: 1e3 # ä/日本"  # which YAML must quote, and ASCII must escape


def other_settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a config in which every setting differs from its default.

    Args:
        given: values by dotted key, for settings whose other values depend on each other.
    """
    whole = RunConfig.model_json_schema()
    used: set[str] = set()
    content = _section(whole, whole["$defs"], given, used, "")
    assert used == given.keys(), f"no such settings: {given.keys() - used}"
    return content


def compared_with_defaults(content: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Yield the dotted key of every setting, and whether its value is its default."""
    whole = RunConfig.model_json_schema()
    yield from _compared(content, whole, whole["$defs"], "")


def _compared(
    content: Mapping[str, Any], model: Schema, models: Schema, above: str
) -> Iterator[tuple[str, bool]]:
    for name, field in model["properties"].items():
        value, key = content[name], above + name
        kind = value.get("kind") if isinstance(value, Mapping) else None
        if kind is not None:
            yield f"{key}.kind", kind == field["default"]["kind"]
        below = _model_of(field, kind, models)
        if below is None or value is None:
            if name != "kind":
                yield key, value == field.get("default", ...)
            continue
        yield key, False
        yield from _compared(value, below, models, f"{key}.")


def _section(
    model: Schema, models: Schema, given: Mapping[str, Any], used: set[str], above: str
) -> dict[str, Any]:
    content = {}
    for name, field in model["properties"].items():
        key = above + name
        kind = given.get(f"{key}.kind")
        if f"{key}.kind" in given:
            used.add(f"{key}.kind")
        if key in given:
            used.add(key)
            content[name] = given[key]
        elif (below := _model_of(field, kind, models)) is not None:
            content[name] = _section(below, models, given, used, f"{key}.")
        else:
            content[name] = _other(key, field, field.get("default"))
    return content


def _model_of(field: Schema, kind: str | None, models: Schema) -> Schema | None:
    """Return the model of a section, of another kind than the default's; None for a value."""
    for option in (field, *field.get("anyOf", ())):
        if "$ref" in option:
            return cast(Schema, models[option["$ref"].rpartition("/")[2]])
    kinds = field.get("discriminator", {}).get("mapping")
    if kinds is None:
        return None
    chosen: str = kind or next(name for name in kinds if name != field["default"]["kind"])
    return cast(Schema, models[kinds[chosen].rpartition("/")[2]])


def _other(key: str, field: Schema, default: Any) -> Any:
    """Return a valid value other than the default."""
    if "const" in field:
        return field["const"]
    if "enum" in field:
        return next(choice for choice in field["enum"] if choice != default)
    if "anyOf" in field:  # or null
        return _other(key, next(o for o in field["anyOf"] if o.get("type") != "null"), default)
    match field["type"]:
        case "boolean":
            return not default
        case "integer":
            return (default or field.get("minimum", 1)) + field.get("multipleOf", 1)
        case "number":
            return 0.9 * default if default else 0.123456789
        case "string":
            return f"{TEXT} of {key}"
        case "array" if "prefixItems" in field:
            pairs = zip(field["prefixItems"], default, strict=True)
            return [_other(key, item, value) for item, value in pairs]
        case "array":
            return [_other(key, field["items"], value) for value in default or [None]]
    raise AssertionError(f"{key}: a value of type {field['type']} must be added here")
