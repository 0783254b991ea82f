"""YAML files and dotted overrides -> a RunConfig; what is wrong is named by its path."""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from pydantic_core import ErrorDetails

from deformable_detr.config import ConfigError, RunConfig

_PACKAGE = Path(__file__).parent
# In a wheel the files are inside the package, in a checkout beside it.
_CONFIGS = _PACKAGE / "configs" if (_PACKAGE / "configs").is_dir() else _PACKAGE.parent / "configs"
_MAX_BASES = 2


class _Yaml12Loader(yaml.SafeLoader):
    """YAML with the scalars of version 1.2: 1e-4 is a number, `no` a string, 012 is twelve."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} stands there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


_Yaml12Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", "-+.0123456789"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
):
    _Yaml12Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first)
    )
_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value, 10))
_Yaml12Loader.add_constructor("tag:yaml.org,2002:float", lambda _, node: float(node.value))


def load_config(config: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config and apply overrides.

    Args:
        config: a YAML file, or the name of one that comes with the package, such as
            "deformable_detr_r50" or "backbones/resnet18".
        overrides: "dotted.key=value", the value written as in YAML.

    Raises:
        ConfigError: the file or an override is wrong.
    """
    path = find_config(config)
    layers = [RunConfig().model_dump(mode="json"), *_read_with_bases(path)]
    merged = reduce(_merge, layers)
    for override in overrides:
        merged = _merge(merged, _parse_override(override))
    return validate_config(merged, source=path.name)


def validate_config(content: Mapping[str, Any], *, source: str) -> RunConfig:
    """Check plain content, as read from YAML or a checkpoint.

    Raises:
        ConfigError: naming the key below `source`.
    """
    try:
        return RunConfig.model_validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        lines = [_describe(detail, source) for detail in error.errors()]
        raise ConfigError("\n".join(lines)) from error
    except TypeError as error:
        raise ConfigError(f"{source}: values must be plain YAML, got {error}") from error


def find_config(config: str | Path) -> Path:
    """The file of a path or a name.

    Raises:
        ConfigError: there is none; it lists the names there are.
    """
    path = Path(config)
    if path.suffix in (".yaml", ".yml"):
        if path.is_file():
            return path
        path = path.with_suffix("")
    candidate = _CONFIGS / f"{path}.yaml"
    if candidate.is_file():
        return candidate
    names = config_names()
    raise ConfigError(
        f"config must be a YAML file or one of {', '.join(names)}, got {str(config)!r}"
        + _suggest(str(path), names)
    )


def config_names() -> list[str]:
    """Names of the configs that come with the package."""
    return sorted(
        file.relative_to(_CONFIGS).with_suffix("").as_posix() for file in _CONFIGS.rglob("*.yaml")
    )


def to_yaml(config: RunConfig) -> str:
    """The whole config as YAML that `load_config` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read_with_bases(path: Path) -> list[dict[str, Any]]:
    """The file and what it inherits from, the deepest base first."""
    layers: list[dict[str, Any]] = []
    file: Path | None = path
    while file is not None:
        if len(layers) > _MAX_BASES:
            raise ConfigError(f"{path.name}.base: must nest at most {_MAX_BASES} deep")
        content = _read_yaml(file)
        base = content.pop("base", None)
        layers.insert(0, content)
        if base is None:
            return layers
        following = file.parent / str(base)
        if not following.is_file():
            raise ConfigError(f"{file.name}.base: must be a file beside it, got {base!r}")
        file = following
    return layers


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_Yaml12Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path.name}: must be YAML, got {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path.name}: must hold keys, got {type(content).__name__}")
    return content


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Keys of `above` win. Another `kind` drops what was inherited for the old one."""
    if "kind" in above and above["kind"] != below.get("kind"):
        return dict(above)
    merged = dict(below)
    for key, value in above.items():
        inherited = below.get(key)
        if isinstance(value, Mapping) and isinstance(inherited, Mapping):
            value = _merge(inherited, value)
        merged[key] = value
    return merged


def _parse_override(override: str) -> dict[str, Any]:
    key, separator, text = override.partition("=")
    parts = key.split(".")
    if not separator or not all(parts):
        raise ConfigError(f"override must be dotted.key=value, got {override!r}")
    try:
        value = yaml.load(text, Loader=_Yaml12Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{key}: must be a YAML value, got {text!r}") from error
    nested: Any = value
    for part in reversed(parts):
        nested = {part: nested}
    return dict(nested)


def _describe(detail: ErrorDetails, source: str) -> str:
    """One line for one wrong key."""
    parts = [str(part) for part in detail["loc"]]
    where = ".".join([source, *_without_kinds(parts)])
    given = detail["input"]
    match detail["type"]:
        case "extra_forbidden":
            names = _known_keys(parts[:-1])
            return f"{where}: unknown key{_suggest(parts[-1], names)}"
        case "missing":
            return f"{where}: must be given"
        case "union_tag_invalid":
            expected = detail.get("ctx", {}).get("expected_tags")
            kind = given.get("kind") if isinstance(given, dict) else given
            return f"{where}.kind: must be one of {expected}, got {kind!r}"
        case "value_error":
            return f"{where}: {detail['ctx']['error']!s}"
        case _:
            message = detail["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
            return f"{where}: must be {message[0].lower()}{message[1:]}, got {given!r}"


def _schema_at(parts: Sequence[str]) -> Mapping[str, Any]:
    """The JSON schema of the model at an error's place."""
    whole = RunConfig.model_json_schema()
    current: Mapping[str, Any] = whole
    for part in parts:
        following = current.get("properties", {}).get(part, {})
        if "discriminator" in current:  # this part is a kind
            following = {"$ref": current["discriminator"]["mapping"].get(part, "")}
        reference = str(following.get("$ref", "")).rpartition("/")[2]
        current = whole["$defs"][reference] if reference else following
    return current


def _known_keys(parts: Sequence[str]) -> list[str]:
    return list(_schema_at(parts).get("properties", {}))


def _without_kinds(parts: Sequence[str]) -> list[str]:
    """The path as it is written in the file: an error's place also names the kind chosen."""
    return [
        part
        for position, part in enumerate(parts)
        if "discriminator" not in _schema_at(parts[:position])
    ]


def _suggest(name: str, names: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(name, names, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""
