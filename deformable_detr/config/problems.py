"""Describe what is wrong with a config: the key, the value, and the key that was meant."""

import difflib
import functools
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from deformable_detr.config import RunConfig
from deformable_detr.config.upgrade import find_renamed
from deformable_detr.messages import SHOWN, in_brief, in_lines, shown

_MOST_LETTERS = 100  # of a name to compare with others
_MOST_PROBLEMS = 10
_YOLO_KEYS = {"names", "nc"}
_COCO_KEYS = {"images", "annotations", "categories"}
_Schema = Mapping[str, Any]


def describe_problems(error: ValidationError, source: str, overrides: Sequence[str] = ()) -> str:
    """Describe the first problems, one per line.

    Args:
        error: of pydantic.
        source: name of the config.
        overrides: dotted keys that were overridden; a problem below one of them names it, not the
            source.
    """
    details = error.errors()
    lines = [_describe(detail, source, overrides) for detail in details[:_MOST_PROBLEMS]]
    if len(details) > _MOST_PROBLEMS:
        lines.append(f"{source}: {len(details) - _MOST_PROBLEMS} more problems like these")
    return "\n".join(lines)


def locate(parts: Sequence[str], source: str, overrides: Sequence[str] = ()) -> str:
    """Return the name of a place for an error: that of an override, or of a key in the source."""
    path = ".".join(parts)
    shown_path = ".".join(map(shown, parts))
    if any(f"{path}.".startswith(f"{key}.") for key in overrides):
        return f"override {shown_path}"
    below = [key for key in overrides if key.startswith(f"{path}.")]
    with_them = f", with override {', '.join(map(shown, below[:SHOWN]))}" if below else ""
    return ".".join(filter(None, (source, shown_path))) + with_them


def foreign_content(content: Mapping[Any, Any]) -> str:
    """Return what a mapping is that is no config, and what to do with it; "" if not recognized."""
    if content.keys() >= _COCO_KEYS:
        return (
            "is a COCO annotation file, not a config; give it as data.train.annotations=FILE "
            "beside --config deformable_detr_r50"
        )
    if _YOLO_KEYS & content.keys() and not content.keys() & {"base", "model", "data", "loss"}:
        return (
            "is a data file of YOLO, not a config; convert its labels to COCO JSON, and give the "
            "files as data.train.images, data.train.annotations, data.val.images and "
            "data.val.annotations beside --config deformable_detr_r50"
        )
    return ""


def suggest(name: str, names: Sequence[str]) -> str:
    """Return the question whether the nearest of the names was meant; "" if none is near."""
    nearest = difflib.get_close_matches(name, names, n=1) if len(name) <= _MOST_LETTERS else []
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


@functools.cache
def schema() -> _Schema:
    """Return the JSON schema of a whole config."""
    return RunConfig.model_json_schema()


@functools.cache
def setting_keys() -> tuple[str, ...]:
    """Return the dotted keys of all settings, of every kind."""
    return tuple(dict.fromkeys(_keys_below(schema(), "")))


def _keys_below(current: _Schema, prefix: str) -> Iterator[str]:
    for name, field in current.get("properties", {}).items():
        sections = [option for option in _options(field) if "properties" in option]
        if not sections:
            yield prefix + name
        for section in sections:
            yield from _keys_below(section, f"{prefix}{name}.")


def _options(field: _Schema) -> list[_Schema]:
    """Return the alternatives of a field, with references resolved."""
    return [
        schema()["$defs"][option["$ref"].rpartition("/")[2]] if "$ref" in option else option
        for option in field.get("anyOf") or field.get("oneOf") or [field]
    ]


def _describe(detail: ErrorDetails, source: str, overrides: Sequence[str]) -> str:
    """Describe the error of one key in one line."""
    parts = [str(part) for part in detail["loc"]]
    names = without_kinds(parts)
    where = locate(names, source, overrides)
    given = detail["input"]
    match detail["type"]:
        case "extra_forbidden":
            if row := find_renamed(names):
                value = row.new_value(given)
                text = value if isinstance(value, str) else json.dumps(value, allow_nan=False)
                return f"{where}: has been renamed; write {row.new}: {shown(text)}"
            if ".".join(names) in setting_keys():
                return f"{where}: unknown key of this kind; it belongs to another kind"
            return f"{where}: unknown key{_meant(parts)}"
        case "missing":
            return f"{where}: must be given"
        case "union_tag_not_found":
            return f"{where}.kind: must be given, as the section has keys of one kind only"
        case "union_tag_invalid":
            expected = detail.get("ctx", {}).get("expected_tags")
            kind = given.get("kind") if isinstance(given, dict) else given
            return f"{where}.kind: must be one of {expected}, got {in_brief(kind)}"
        case "value_error":
            return f"{where}: {in_lines(str(detail['ctx']['error']))}"
        case "model_type" | "dict_type" if not isinstance(given, Mapping):
            return f"{where}: {_section(names, given)}"
        case _:
            message = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            return f"{where}: must be {message[0].lower()}{message[1:]}, got {in_brief(given)}"


def _section(names: Sequence[str], given: Any) -> str:
    """Describe a value where keys are wanted."""
    prefix = ".".join(names) + "."
    keys = [key for key in setting_keys() if key.startswith(prefix)]
    if f"{prefix}kind" in keys:
        keys = [f"{prefix}kind"]
    more = f" and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
    return f"must be set by its keys, {', '.join(keys[:SHOWN])}{more}, got {in_brief(given)}"


def _meant(parts: Sequence[str]) -> str:
    """Return the question whether a key of the same name elsewhere, or a near one, was meant."""
    name = parts[-1]
    same = [key for key in setting_keys() if key.rpartition(".")[2] == name]
    if 1 <= len(same) <= SHOWN:
        return f"; did you mean {' or '.join(same)}?"
    if near := suggest(name, list(_schema_at(parts[:-1]).get("properties", {}))):
        return near
    if same:
        return f"; did you mean {', '.join(same[:SHOWN])} or one of {len(same) - SHOWN} more?"
    leaves = {key.rpartition(".")[2]: key for key in reversed(setting_keys())}
    nearest = difflib.get_close_matches(name, leaves, n=1) if len(name) <= _MOST_LETTERS else []
    return f"; did you mean {leaves[nearest[0]]}?" if nearest else ""


def _schema_at(parts: Sequence[str]) -> _Schema:
    """Return the JSON schema of the model at the location of an error."""
    whole = current = schema()
    for part in parts:
        following = current.get("properties", {}).get(part, {})
        if "discriminator" in current:  # this part is a kind
            following = {"$ref": current["discriminator"]["mapping"].get(part, "")}
        reference = str(following.get("$ref", "")).rpartition("/")[2]
        current = whole["$defs"][reference] if reference else following
    return current


def without_kinds(parts: Sequence[str]) -> list[str]:
    """Remove kinds from the location of an error, which gives the path of the key in the file."""
    return [
        part
        for position, part in enumerate(parts)
        if "discriminator" not in _schema_at(parts[:position])
    ]
