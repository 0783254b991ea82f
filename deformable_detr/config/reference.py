"""The page of all settings, made from their descriptions.

python -m deformable_detr.config.reference > docs/settings.md
"""

import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from deformable_detr.config import RunConfig

Schema = Mapping[str, Any]

_INTRODUCTION = """\
# Settings

In a YAML file keys are nested; after the options of a command, and in Python, they have dots:
`train.optimizer.lr=1e-4`. A part that has a choice of kinds is replaced with its `kind`:
`train.schedule.kind=cosine`, or `"train.schedule={kind: cosine, warmup_steps: 500}"`.

The page is made by `python -m deformable_detr.config.reference`."""
_BOUNDS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "multipleOf": "a multiple of {}",
}


def settings_page() -> str:
    """Markdown with every setting: its dotted key, type, default and description."""
    whole = RunConfig.model_json_schema()
    return "\n".join([_INTRODUCTION, *_tables("", {"": whole}, whole["$defs"])]) + "\n"


def _tables(above: str, kinds: Mapping[str, Schema], models: Schema) -> Iterator[str]:
    """The lines of a section and those below it.

    Args:
        above: dotted key of the section, with a dot at its end.
        kinds: the section's model, or its models by kind.
        models: all models by name.
    """
    rows: dict[str, list[str]] = {}  # with the kinds that have it
    below: dict[str, Schema] = {}
    for kind, model in kinds.items():
        for name, field in model["properties"].items():
            if _kinds(field, models):
                below[above + name] = field
            elif name != "kind":
                rows.setdefault(_row(above + name, field), []).append(f"`{kind}`")
    if rows:
        has_kinds = len(kinds) > 1
        yield "\n| setting | type | default | meaning |" + (" kinds |" if has_kinds else "")
        yield "|---|---|---|---|" + ("---|" if has_kinds else "")
        for row, of in rows.items():
            of_kinds = "all" if len(of) == len(kinds) else ", ".join(of)
            yield row + (f" {of_kinds} |" if has_kinds else "")
    for key, field in below.items():
        own_kinds = _kinds(field, models)
        yield f"\n##{'#' * key.count('.')} `{key}`\n\n{_text(field)}"
        if len(own_kinds) > 1:
            yield ""
            for kind, model in own_kinds.items():
                default = " (default)" if kind == field["default"]["kind"] else ""
                yield f"* `{kind}`{default}: {_text(model)}"
        yield from _tables(f"{key}.", own_kinds, models)


def _kinds(field: Schema, models: Schema) -> dict[str, Schema]:
    """The models that a field may hold, by kind or, if it is always one, as ""; else none."""
    references = field.get("discriminator", {}).get("mapping", {})
    for option in (field, *field.get("anyOf", ())):  # or null
        if "$ref" in option:
            references = {"": option["$ref"]}
    return {kind: models[name.rpartition("/")[2]] for kind, name in references.items()}


def _row(key: str, field: Schema) -> str:
    default = json.dumps(field["default"]).strip('"') if "default" in field else ""
    default = f"`{default}`" if default else "must be given"
    return f"| `{key}` | {_type(field)} | {default} | {_text(field)} |"


def _type(field: Schema, plural: str = "") -> str:
    if "anyOf" in field:
        return " or ".join(_type(option) for option in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{choice}`" for choice in field["enum"])
    if field["type"] == "null":
        return "`null`"
    if "prefixItems" in field:
        return f"two {_type(field['prefixItems'][0], 's')}"
    if "items" in field:
        return f"list of {_type(field['items'], 's')}"
    bounds = [text.format(field[bound]) for bound, text in _BOUNDS.items() if bound in field]
    return f"{field.get('format', field['type'])}{plural} {', '.join(bounds)}".strip()


def _text(described: Schema) -> str:
    return " ".join(described["description"].split())


if __name__ == "__main__":
    sys.stdout.write(settings_page())
